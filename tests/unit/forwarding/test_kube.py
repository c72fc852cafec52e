import pytest

from shoal.core.errors import Forbidden, InvalidInput, NotFound, Unavailable
from shoal.forwarding.kube import Kubernetes, Master, Wanted
from shoal.forwarding.target import Pod
from tests.fake_kubernetes import FakeKubernetes, pod, service
from tests.ports import free_port


class TestKubeconfig:
    def test_none_is_told_with_its_place(self, tmp_path, monkeypatch):
        with pytest.raises(InvalidInput, match=r"no kubeconfig: .*/absent is not there; name one by --kubeconfig"):
            Kubernetes(Wanted(kubeconfig=str(tmp_path / "absent")))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "other"))
        with pytest.raises(InvalidInput, match="no kubeconfig: .*/other is not there"):
            Kubernetes(Wanted())

    @pytest.mark.parametrize("text", ["", "[]", "just words", "a: [", "contexts: []", "{current-context: x}"])
    def test_one_that_is_none_is_told_in_one_line(self, tmp_path, text):
        (tmp_path / "config").write_text(text)
        with pytest.raises(InvalidInput, match="kubeconfig .*/config cannot be used: .") as caught:
            Kubernetes(Wanted(kubeconfig=str(tmp_path / "config")))
        assert "\n" not in str(caught.value)

    def test_a_context_that_it_does_not_have(self, kubernetes):
        with pytest.raises(InvalidInput, match="no context 'prod' in .*; there are fake"):
            kubernetes(kube_context="prod")

    def test_its_namespace_is_the_default(self, fake, tmp_path):
        path = fake.kubeconfig(tmp_path / "config", namespace="ml")
        assert Kubernetes(Wanted(kubeconfig=str(path))).namespace == "ml"
        assert Kubernetes(Wanted(kubeconfig=str(path), namespace="other")).namespace == "other"


class TestFinding:
    def test_the_only_release(self, fake, kubernetes):
        fake.services = [service("team-shoal-master", release="team")]
        assert kubernetes().find_master() == Master(
            namespace="default",
            release="team",
            service="team-shoal-master",
            selector="app.kubernetes.io/component=master,app.kubernetes.io/instance=team",
            target_port="grpc",
        )

    def test_none(self, kubernetes):
        with pytest.raises(NotFound, match=r"no release of Shoal in namespace default \(kube context fake\)"):
            kubernetes().find_master()
        with pytest.raises(NotFound, match="no release 'x' of Shoal in namespace default"):
            kubernetes(release="x").find_master()

    def test_several_are_named(self, fake, kubernetes):
        fake.services = [service("b-master", release="b"), service("a-master", release="a")]
        with pytest.raises(InvalidInput, match=r"several releases in .*: a, b; name one by --release"):
            kubernetes().find_master()
        assert kubernetes(release="b").find_master().service == "b-master"

    def test_services_of_other_ports_do_not_count_and_several_of_grpc_are_named(self, fake, kubernetes):
        metrics = service("metrics", ports=[{"name": "http", "port": 7071}])
        fake.services = [service(), metrics]
        assert kubernetes().find_master().service == "shoal-master"
        fake.services.append(service("second", ports=[{"port": 7070}]))
        with pytest.raises(InvalidInput, match="several services of the master in .*: second, shoal-master"):
            kubernetes().find_master()

    def test_a_service_by_name(self, fake, kubernetes):
        fake.services = [service(), service("odd", ports=[{"name": "x", "port": 1, "targetPort": 8080}])]
        assert kubernetes(service="odd").find_master().target_port == 8080
        fake.services.append(service("two", ports=[{"name": "x", "port": 1}, {"name": "y", "port": 2}]))
        with pytest.raises(InvalidInput, match="service two has no port 7070 and none named grpc"):
            kubernetes(service="two").find_master()
        fake.services.append(service("bare", selector=None))
        with pytest.raises(InvalidInput, match="service bare selects no pods"):
            kubernetes(service="bare").find_master()
        with pytest.raises(NotFound, match='services "absent" not found'):
            kubernetes(service="absent").find_master()

    def test_the_newest_ready_pod(self, fake, kubernetes):
        fake.services = [service()]
        fake.pods = [pod("a"), pod("b", port=9), pod("c", ready=False), pod("d"), pod("other", release="other")]
        fake.pods[1]["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z"
        fake.pods[3]["metadata"] |= {
            "creationTimestamp": "2026-03-01T00:00:00Z",
            "deletionTimestamp": "2026-03-01T00:00:00Z",
        }
        cluster = kubernetes()
        assert cluster.ready_pod(cluster.find_master()) == Pod(name="b", uid="uid-of-b", port=9)
        fake.pods = [pod(ready=False)]
        assert cluster.ready_pod(cluster.find_master()) is None


class TestRefusals:
    def test_no_rights_are_told_with_the_verb(self, fake, kubernetes):
        fake.services = [service()]
        cluster = kubernetes()
        master = cluster.find_master()
        fake.refused = {"services": 403, "pods": 403, "portforward": 403}
        fake.pods = [pod()]
        with pytest.raises(Forbidden, match=r"no right to list services in namespace default \(kube context fake\)"):
            cluster.find_master()
        with pytest.raises(Forbidden, match="no right to list pods in namespace default"):
            cluster.ready_pod(master)
        with pytest.raises(Forbidden, match="no right to create pods/portforward in namespace default"):
            cluster.connect(master, Pod(name="shoal-master-a", uid="1", port=1))

    def test_credentials_that_are_none_any_more(self, fake, kubernetes):
        fake.token = "another"
        with pytest.raises(Forbidden, match="does not accept the credentials of context fake; log in again"):
            kubernetes().find_master()

    def test_credentials_that_were_renewed_are_read_again(self, fake, kubernetes, tmp_path):
        fake.services = [service()]
        cluster = kubernetes()
        fake.token = "renewed"
        path = tmp_path / "config"
        path.write_text(path.read_text().replace("secret", "renewed"))
        assert cluster.find_master().service == "shoal-master"

    def test_an_api_that_is_not_there(self, fake, tmp_path):
        path = fake.kubeconfig(tmp_path / "config")
        nobody = f"http://127.0.0.1:{free_port()}"
        path.write_text(path.read_text().replace(fake.url, nobody))
        with pytest.raises(Unavailable, match=f"the Kubernetes API at {nobody} cannot be reached: .*refused") as caught:
            Kubernetes(Wanted(kubeconfig=str(path))).find_master()
        assert "\n" not in str(caught.value)

    def test_an_api_that_fails(self, fake, kubernetes):
        fake.refused = {"services": 500}
        with pytest.raises(Unavailable, match="answered 500"):
            kubernetes().find_master()

    def test_a_pod_that_is_gone(self, fake, kubernetes):
        fake.services = [service()]
        cluster = kubernetes()
        with pytest.raises(NotFound, match='pods "gone" not found'):
            cluster.connect(cluster.find_master(), Pod(name="gone", uid="1", port=1))


def test_the_fake_asks_for_the_token(fake: FakeKubernetes, tmp_path):
    """Or the tests about credentials would prove nothing."""
    path = fake.kubeconfig(tmp_path / "config")
    path.write_text(path.read_text().replace("secret", "wrong"))
    with pytest.raises(Forbidden):
        Kubernetes(Wanted(kubeconfig=str(path))).find_master()
