"""CloudWatch Logs, as AWS documents it."""


def test_events_are_found_in_pages(client):
    """https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_FilterLogEvents.html"""
    logs, group, stream = client("logs"), "pages", "stream"
    logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName=stream)
    now = 1_795_669_658_000
    times = [now, now + 1, now + 1, now + 1, now + 1, now + 2, now + 3]
    events = [{"timestamp": time, "message": str(number)} for number, time in enumerate(times)]
    logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)
    pages = logs.get_paginator("filter_log_events").paginate(
        logGroupName=group, startTime=now + 1, PaginationConfig={"PageSize": 2}
    )
    assert [[event["message"] for event in page["events"]] for page in pages] == [["1", "2"], ["3", "4"], ["5", "6"]]
