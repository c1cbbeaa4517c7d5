"""What the router reads from a request, on either path; a request that cannot be read is the engine's to refuse."""

import pickle
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")

from vllm_hybrid.ray.choice import Chooser, Routed
from vllm_hybrid.ray.router import HybridRouter

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore:Using extra keyword")]


@pytest.fixture
def router():
    made = object.__new__(HybridRouter)  # Ray's own state is not asked for
    made.initialize_state(imbalance=0.25, prefix_chars=8, header="x-client")
    return made


def pending(*args):
    metadata = SimpleNamespace(internal_request_id="id")
    return SimpleNamespace(args=list(args), metadata=metadata)


def test_a_completion_shows_client_lane_and_head(router):
    body = SimpleNamespace(vllm_xargs={"client": "a", "lane": "offline"}, prompt="one two three")
    assert router.seen(pending(body)) == Routed("a", False, "one two ")


def test_a_chat_shows_the_head_of_its_messages(router):
    body = SimpleNamespace(vllm_xargs=None, messages=[{"role": "user", "content": "hello"}])
    assert router.seen(pending(body)) == Routed("default", True, "['hello'")


def test_an_asgi_request_shows_its_headers(router):
    scope = SimpleNamespace(asgi_scope={"headers": [(b"x-client", b"a")]})
    assert router.seen(pending(pickle.dumps(scope))) == Routed("a", True, "")


@pytest.mark.parametrize("body", [None, b"junk", SimpleNamespace(vllm_xargs={"client": ["x"]})])
def test_what_cannot_be_read_is_routed_all_the_same(router, body):
    assert router.seen(pending(body)) == Routed()


def test_a_request_is_under_way_until_it_ends(router):
    body = SimpleNamespace(vllm_xargs={"client": "a"}, prompt="one")
    replica = SimpleNamespace(unique_id="r0")
    router.on_request_routed(pending(body), replica, None)
    assert router._chooser._under_way == {("r0", "a"): 1}
    router.on_request_completed(replica, "id")
    assert not router._chooser._under_way
    assert isinstance(router._chooser, Chooser)
