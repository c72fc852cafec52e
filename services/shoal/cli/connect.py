"""`shoal connect`: a port of this machine that is the master of a release in Kubernetes, while the command runs."""

import shlex
import socket
import threading
from typing import Annotated

import typer

from shoal.cli import output as out
from shoal.cli.options import Format, Output
from shoal.cli.reaching import LOCAL_CONTEXT
from shoal.cli.stopping import Stopped, shielded
from shoal.core.errors import InvalidInput
from shoal.sdk.contexts import Context, ContextFile, Contexts
from shoal.sdk.extras import needs

USUAL_PORT = 7070


def connect(
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="The release's namespace. Default: the kubeconfig's.")
    ] = "",
    release: Annotated[str, typer.Option(help="The Helm release. Default: the only one in the namespace.")] = "",
    kube_context: Annotated[str, typer.Option(help="Context of the kubeconfig. Default: its current one.")] = "",
    kubeconfig: Annotated[str, typer.Option(help="Path of it. Default: $KUBECONFIG, or ~/.kube/config.")] = "",
    service: Annotated[str, typer.Option(help="The master's Service, where labels do not tell.")] = "",
    local_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            help="Port of this machine; 0: any free one. Default: the context's last one, 7070, or any free one.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="The context's name. Default: NAMESPACE/RELEASE.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Forward a port to the master of a release in Kubernetes, until Ctrl-C, and make it the current context."""
    with needs("kubernetes", "'shoal connect'"):
        from shoal.forwarding.forwarder import Forwarder
        from shoal.forwarding.kube import Kubernetes, Route, Wanted

    file = ContextFile()
    contexts = file.read()
    if name == LOCAL_CONTEXT:
        raise InvalidInput(f"--name {name}: this is the context of 'shoal up'; choose another name", field="name")
    kubernetes = Kubernetes(
        Wanted(
            kubeconfig=kubeconfig,
            kube_context=kube_context,
            namespace=namespace,
            release=release,
            service=service,
        )
    )
    master = kubernetes.find_master()
    name = name or f"{master.namespace}/{master.release or master.service}"
    forwarder = Forwarder(route=Route(kubernetes, master), listener=_listener(local_port, contexts, name), say=out.say)
    try:
        port = forwarder.address.rpartition(":")[2]
        command = _again(
            {
                "--namespace": master.namespace,
                "--release": release,
                "--kube-context": kube_context,
                "--kubeconfig": kubeconfig,
                "--service": service,
                "--local-port": port,
                "--name": name,
            }
        )
        file.store(Context(name=name, address=forwarder.address, command=command))
        forwarder.start()
        pod = forwarder.wait_ready()
        assert pod is not None
        if output is Format.TABLE:
            print(
                f"{forwarder.address} is the master of {name}; this is the current context, Ctrl-C ends it", flush=True
            )
        else:
            document = {
                "address": forwarder.address,
                "context": name,
                "namespace": master.namespace,
                "release": master.release,
                "service": master.service,
                "pod": pod.name,
            }
            out.show(document, output, {})
        threading.Event().wait()
    except Stopped as stopped:
        with shielded():
            forwarder.close()
        out.say(f"{stopped}: nothing is forwarded any more; context '{name}' stays for the next 'shoal connect'")
        raise typer.Exit(stopped.code) from stopped
    finally:
        with shielded():
            forwarder.close()


def _listener(wanted: int | None, contexts: Contexts, name: str) -> socket.socket:
    """On the port that is wanted, that the context had before, the usual one, or any free one."""
    from shoal.forwarding.forwarder import HOST, listen

    if wanted is not None:
        return listen(wanted)
    known = contexts.find(name)
    if known is not None and known.address.startswith(f"{HOST}:"):
        return listen(int(known.address.removeprefix(f"{HOST}:")))
    try:
        return listen(USUAL_PORT)
    except InvalidInput:
        return listen(0)


def _again(options: dict[str, str]) -> str:
    """The command line that does the same."""
    given = [part for option, value in options.items() if value for part in (option, value)]
    return shlex.join(["shoal", "connect", *given])
