"""S3: the version of an object in the events of a versioned bucket.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html
"""

import contextvars
import json
from collections.abc import Callable
from typing import Any

from ministack.services import eventbridge, s3

from local.emulator.adapter import override

version_of_event: contextvars.ContextVar[str | None] = contextvars.ContextVar("version_of_event", default=None)


@override(s3, "_fire_s3_event")
def fire_event(original: Callable[..., None], *args: Any, version_id: str | None = None, **options: Any) -> None:
    """Remember the version for dispatch_event: ministack passes it to notifications only, not to EventBridge."""
    token = version_of_event.set(version_id)
    try:
        original(*args, version_id=version_id, **options)
    finally:
        version_of_event.reset(token)


@override(eventbridge, "_dispatch_event")
def dispatch_event(original: Callable[..., Any], event: dict[str, Any], *view: Any) -> Any:
    version = version_of_event.get()
    if version and event["Source"] == "aws.s3":
        detail = json.loads(event["Detail"])
        detail["object"]["version-id"] = version
        event = event | {"Detail": json.dumps(detail)}
    return original(event, *view)
