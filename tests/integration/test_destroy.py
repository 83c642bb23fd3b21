"""A stack is emptied, deleted, and said to leave what it leaves."""

import uuid
from concurrent.futures import ThreadPoolExecutor

from local.deployment import deploy, model_archive, upload_model
from tools import destroy
from tools.empty_bucket import empty


def test_a_bucket_of_thousands_of_versions_is_emptied(stack):
    s3, bucket = stack.client("s3"), f"crowded-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=bucket)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: s3.put_object(Bucket=bucket, Key=f"{number % 1240}", Body=b""), range(2480)))
        list(pool.map(lambda number: s3.delete_object(Bucket=bucket, Key=f"{number}"), range(20)))
    assert empty(s3, bucket) == 2500
    assert not {"Versions", "DeleteMarkers"} & set(s3.list_object_versions(Bucket=bucket))
    s3.delete_bucket(Bucket=bucket)


def test_destroying_a_stack_says_what_is_in_the_way_and_what_remains(stack, seven):
    model = upload_model(stack, model_archive())
    parameters = {"EndpointType": "serverless", "ModelDataUrl": model, "ModelPackageGroupName": "promoted"}
    outputs = deploy(stack, "destroyed", **parameters)
    bucket, s3 = outputs["ImageBucketName"], stack.client("s3")
    assert destroy.obstacles(stack.client, "destroyed") == []
    s3.put_object(Bucket=bucket, Key="seven.png", Body=seven)
    s3.delete_object(Bucket=bucket, Key="seven.png")
    (obstacle,) = destroy.obstacles(stack.client, "destroyed")
    assert f"make empty-bucket BUCKET={bucket}" in obstacle
    empty(s3, bucket)
    iam, policy = stack.client("iam"), outputs["ReviewerPolicyArn"]
    iam.create_role(RoleName="Reviewers", AssumeRolePolicyDocument="{}")
    iam.attach_role_policy(RoleName="Reviewers", PolicyArn=policy)
    detach = f"aws iam detach-role-policy --role-name Reviewers --policy-arn {policy}"
    assert destroy.obstacles(stack.client, "destroyed") == [f"role Reviewers has the policy ReviewerPolicy: {detach}"]
    iam.detach_role_policy(RoleName="Reviewers", PolicyArn=policy)
    iam.delete_role(RoleName="Reviewers")
    left = destroy.leftovers(stack.client, "destroyed")
    table = outputs["ReviewTableName"]
    assert set(left[:4]) == {
        "the endpoint's log: aws logs delete-log-group --log-group-name /aws/sagemaker/Endpoints/destroyed",
        "the group promoted: aws sagemaker delete-model-package-group --model-package-group-name promoted",
        f"the table ReviewTable: aws dynamodb delete-table --table-name {table}",
        f"the model: aws s3 rm {model}",
    }
    assert "aws-sam-cli-managed-default" in left[-1]
    cloudformation = stack.client("cloudformation")
    cloudformation.delete_stack(StackName="destroyed")
    cloudformation.get_waiter("stack_delete_complete").wait(StackName="destroyed", WaiterConfig={"Delay": 1})
    assert stack.client("dynamodb").describe_table(TableName=table)["Table"]["TableStatus"] == "ACTIVE"
    s3.head_object(**dict(zip(("Bucket", "Key"), model.removeprefix("s3://").split("/", 1), strict=True)))
