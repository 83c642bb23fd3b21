"""CheckConfidence in plain Python: no validation, logs, traces or metrics."""


def lambda_handler(event: dict, context: object) -> dict:
    best = event["predictions"][0]
    return {**event, "accepted": best["probability"] >= event["threshold"]}
