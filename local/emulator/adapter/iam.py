"""IAM: the local stack's plain HTTP on 127.0.0.1 counts as secure transport: AWS's APIs are called over TLS.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html#condition-keys-securetransport
"""

from collections.abc import Callable

from ministack.core import iam_evaluator

from local.emulator.adapter import override


@override(iam_evaluator, "pin_request_origin")
def pin_request_origin(original: Callable[[str, bool], None], source_ip: str, _secure_transport: bool) -> None:
    original(source_ip, True)
