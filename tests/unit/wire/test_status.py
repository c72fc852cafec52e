import inspect
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from shoal.core import errors
from shoal.wire.options import channel_options, open_channel, server_options
from shoal.wire.status import TABLE, answered, raised_from_call, was_cut_off
from tests.ports import free_port

ERRORS = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.ShoalError) and cls is not errors.ShoalError
]


@pytest.fixture
def call():
    """A unary call to a server that raises what `fail` holds."""
    fail: list[errors.ShoalError] = []

    def behave(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"end":
            context.cancel()
        with answered(context):
            if fail:
                raise fail[0]
        return request

    server = grpc.server(ThreadPoolExecutor(1), options=server_options())
    handler = grpc.unary_unary_rpc_method_handler(behave)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Say": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with open_channel(f"127.0.0.1:{port}") as channel:
        yield fail, channel.unary_unary("/test.Echo/Say")
    server.stop(None).wait()


def test_every_error_has_a_row_of_its_own():
    assert {cls for cls, _ in TABLE} == set(ERRORS)
    assert len(TABLE) == len(ERRORS)


@pytest.mark.parametrize("cls", ERRORS)
def test_a_client_raises_the_class_that_the_server_raised(call, cls):
    fail, say = call
    fail.append(cls("what is wrong, and what to do"))
    with pytest.raises(errors.ShoalError) as caught, raised_from_call():
        say(b"", timeout=10)
    assert type(caught.value) is cls
    assert str(caught.value) == "what is wrong, and what to do"
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert not was_cut_off(caught.value)


def test_the_field_travels_with_invalid_input(call):
    fail, say = call
    fail.append(errors.InvalidInput("too low", field="optimizer.learning_rate"))
    with pytest.raises(errors.InvalidInput) as caught, raised_from_call():
        say(b"", timeout=10)
    assert caught.value.field == "optimizer.learning_rate"


def test_an_answer_passes(call):
    _, say = call
    with raised_from_call():
        assert say(b"hello", timeout=10) == b"hello"


def test_nobody_there_is_unavailable_and_known_as_cut_off():
    with open_channel(f"127.0.0.1:{free_port('127.0.0.1')}") as channel:
        with pytest.raises(errors.Unavailable) as caught, raised_from_call():
            channel.unary_unary("/test.Echo/Say")(b"", timeout=10)
    assert was_cut_off(caught.value)


def test_a_call_that_the_server_cancels_as_it_ends_is_unavailable_and_known_as_cut_off(call):
    _, say = call
    with pytest.raises(errors.Unavailable) as caught, raised_from_call():
        say(b"end", timeout=10)
    assert caught.value.__cause__.code() is grpc.StatusCode.CANCELLED
    assert was_cut_off(caught.value)


def test_an_error_that_came_from_no_call_was_not_cut_off():
    assert not was_cut_off(errors.Unavailable("said here"))


def test_clients_ping_no_faster_than_servers_allow_and_messages_are_bounded():
    client, server = dict(channel_options()), dict(server_options())
    assert client["grpc.keepalive_time_ms"] >= server["grpc.http2.min_ping_interval_without_data_ms"]
    for options in (client, server):
        assert options["grpc.max_receive_message_length"] > 0
        assert options["grpc.max_send_message_length"] > 0
