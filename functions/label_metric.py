"""The metric LabelConfidence, which RecordOutcome emits and PublishReviewMetrics reads: which labels have one."""

NAME = "LabelConfidence"
MAX_LABELS = 10  # each label costs a custom metric: none for models with more labels


def is_dimension(label: str) -> bool:
    """Whether CloudWatch accepts the label as a dimension: visible ASCII characters, and not spaces alone.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_Dimension.html
    """
    return bool(label.isascii() and label.isprintable() and label.strip() and not label.startswith(":"))
