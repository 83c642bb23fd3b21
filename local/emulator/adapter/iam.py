"""IAM: secure transport, which the local stack's plain HTTP on 127.0.0.1 counts as, wildcards, and events:source.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html#condition-keys-securetransport
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_resource.html
https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-use-conditions.html
"""

import json
import re
from collections.abc import Callable
from typing import Any

from ministack.core import iam_actions, iam_evaluator

from local.emulator.adapter import override


@override(iam_evaluator, "pin_request_origin")
def pin_request_origin(original: Callable[[str, bool], None], source_ip: str, _secure_transport: bool) -> None:
    """AWS's APIs are called over TLS."""
    original(source_ip, True)


@override(iam_evaluator, "_fnmatch_compile")
def compile_wildcards(
    original: Callable[[str, bool], re.Pattern[str]], pattern: str, ignore_case: bool
) -> re.Pattern[str]:
    """Let wildcards match line breaks too, which an object's key can contain."""
    compiled = original(pattern, ignore_case)
    return re.compile(compiled.pattern, compiled.flags | re.DOTALL)


@override(iam_actions, "request_tag_context")
def request_context(
    original: Callable[..., dict[str, Any]], service: str, action: str, body: bytes, parameters: dict[str, Any]
) -> dict[str, Any]:
    """Add the source of the events that a PutEvents request publishes: policies can depend on it."""
    context = original(service, action, body, parameters)
    if action == "events:PutEvents":
        sources = {entry.get("Source") for entry in json.loads(body)["Entries"]}
        context["events:source"] = sources.pop() if len(sources) == 1 else sorted(sources)
    return context
