"""Messages of other prompts on the websocket are not taken for those of the running one."""

import json

from tools.comfy_harness.server import _follow


class Heard:
    """A connection on which these messages come, one by one."""

    def __init__(self, *messages: tuple[str, dict[str, object]]):
        self.messages = [json.dumps({"type": kind, "data": data}) for kind, data in messages]

    def recv(self) -> str:
        return self.messages.pop(0)


def test_what_the_server_says_of_the_prompt_before_is_not_of_this_one() -> None:
    """A new connection may still get the last node of the prompt before, without a prompt's id."""
    connection = Heard(
        ("status", {"sid": "me"}),
        ("executing", {"node": "build"}),
        ("executing", {"node": None, "prompt_id": "before"}),
        ("execution_cached", {"nodes": ["model", "build"], "prompt_id": "this"}),
        ("executed", {"node": "build", "output": {"text": ["a report"]}, "prompt_id": "this"}),
        ("execution_success", {"prompt_id": "this"}),
    )
    outcome = _follow(connection, "this", None)
    assert outcome.status == "success"
    assert outcome.executed == [] and outcome.outputs == {"build": {"text": ["a report"]}}
