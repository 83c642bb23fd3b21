"""CheckConfidence with nothing but Python: nothing checked, logged, traced or measured."""


def lambda_handler(event, context):
    best = event["predictions"][0]
    return {**event, "accepted": best["probability"] >= event["threshold"]}
