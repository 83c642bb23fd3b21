"""CloudFormation, as AWS documents it: resources that the emulator only records."""

import json

from emulated import deploy


def test_a_stack_with_scaling_deploys(client):
    """Only recorded, without effect: the scalable target and the scaling policy of an endpoint.

    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/AWS_ApplicationAutoScaling.html
    """
    target = {
        "ServiceNamespace": "sagemaker",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
        "ResourceId": "endpoint/scaled/variant/AllTraffic",
        "MinCapacity": 1,
    }
    policy = {"PolicyName": "p", "PolicyType": "TargetTrackingScaling", "ScalingTargetId": {"Ref": "ScalableTarget"}}

    def template(maximum):
        resources = {"ScalableTarget": target | {"MaxCapacity": maximum}, "ScalingPolicy": policy}
        typed = {
            name: {"Type": f"AWS::ApplicationAutoScaling::{name}", "Properties": properties}
            for name, properties in resources.items()
        }
        return json.dumps({"Resources": typed, "Outputs": {"Target": {"Value": {"Ref": "ScalableTarget"}}}})

    created = deploy(client, "scaled", template(4))
    assert deploy(client, "scaled", template(8), "update") == created
    client("cloudformation").delete_stack(StackName="scaled")


def test_a_stack_with_a_model_package_group_deploys(client):
    """Only recorded, without effect.

    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-sagemaker-modelpackagegroup.html
    """
    group = {"Type": "AWS::SageMaker::ModelPackageGroup", "Properties": {"ModelPackageGroupName": "g"}}
    template = {"Resources": {"Group": group}, "Outputs": {"Group": {"Value": {"Ref": "Group"}}}}
    assert deploy(client, "grouped", json.dumps(template))["Group"]
    client("cloudformation").delete_stack(StackName="grouped")


def test_a_stack_with_composite_alarms_and_saved_queries_deploys(client):
    """Only recorded, without effect: composite alarms, alarms on several metrics, saved queries of Logs and Athena.

    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-cloudwatch-compositealarm.html
    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-cloudwatch-alarm.html, Metrics
    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-logs-querydefinition.html
    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-athena-namedquery.html
    """
    stat = {"Metric": {"Namespace": "AWS/Lambda", "MetricName": "Throttles"}, "Stat": "Sum", "Period": 60}
    metrics = [{"Id": "all", "Expression": "one * 2"}, {"Id": "one", "MetricStat": stat, "ReturnData": False}]
    watch = {"ComparisonOperator": "GreaterThanThreshold", "EvaluationPeriods": 1, "Threshold": 1}

    def template(limit):
        resources = {
            "AWS::CloudWatch::Alarm": watch | {"Metrics": metrics, "Threshold": limit},
            "AWS::CloudWatch::CompositeAlarm": {"AlarmRule": {"Fn::Sub": "ALARM(${Alarm})"}},
            "AWS::Logs::QueryDefinition": {"Name": "q", "QueryString": "fields @message"},
            "AWS::Athena::NamedQuery": {"Database": "d", "QueryString": "SELECT 1"},
        }
        typed = {
            kind.split("::")[2]: {"Type": kind, "Properties": properties} for kind, properties in resources.items()
        }
        return json.dumps({"Resources": typed, "Outputs": {"Alarm": {"Value": {"Ref": "Alarm"}}}})

    created = deploy(client, "watched", template(1))
    assert deploy(client, "watched", template(2), "update") == created
    client("cloudformation").delete_stack(StackName="watched")
