"""The shorthand in the metrics of a CloudWatch dashboard."""

from typing import Any


def expanded(metrics: list[list[Any]]) -> list[list[Any]]:
    """A widget's metrics with every field written out; the last item of each row holds its options.

    "." repeats the field above it, and "..." as many fields as the row lacks in comparison with the row above.
    https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/CloudWatch-Dashboard-Body-Structure.html
    """
    rows: list[list[Any]] = []
    for *fields, options in metrics:
        above = rows[-1][:-1] if rows else []
        if "..." in fields:
            start = fields.index("...")
            fields[start : start + 1] = above[start : start + 1 + len(above) - len(fields)]
        rows.append([*(above[i] if field == "." else field for i, field in enumerate(fields)), options])
    return rows
