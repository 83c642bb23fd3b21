"""CloudFormation, as AWS documents it: resources that the emulator only records."""

import json

from emulated import deploy
from resources import eventually

STAT = {"Metric": {"Namespace": "AWS/Lambda", "MetricName": "Throttles"}, "Stat": "Sum", "Period": 60}
SEVERAL_METRICS = {
    "Metrics": [{"Id": "all", "Expression": "one * 2"}, {"Id": "one", "MetricStat": STAT, "ReturnData": False}],
    "ComparisonOperator": "GreaterThanThreshold",
    "EvaluationPeriods": 1,
}


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
    """Only recorded, without effect: composite alarms, saved queries of Logs and Athena.

    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-cloudwatch-compositealarm.html
    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-logs-querydefinition.html
    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-athena-namedquery.html
    """

    def template(limit):
        resources = {
            "AWS::CloudWatch::Alarm": SEVERAL_METRICS | {"Threshold": limit},
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


def test_an_alarm_on_several_metrics_is_described_with_them(client):
    """As Metrics says: described, but not evaluated.

    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-cloudwatch-alarm.html
    """

    def template(limit):
        alarm = {"Type": "AWS::CloudWatch::Alarm", "Properties": SEVERAL_METRICS | {"Threshold": limit}}
        return json.dumps({"Resources": {"Alarm": alarm}, "Outputs": {"Alarm": {"Value": {"Ref": "Alarm"}}}})

    def described():
        return client("cloudwatch").describe_alarms(AlarmNames=[name])["MetricAlarms"]

    name = deploy(client, "computed", template(1))["Alarm"]
    (alarm,) = described()
    assert {key: alarm[key] for key in SEVERAL_METRICS} == SEVERAL_METRICS
    assert alarm["Threshold"] == 1
    assert not {"MetricName", "Namespace", "Statistic", "Period"} & set(alarm)
    assert deploy(client, "computed", template(2), "update") == {"Alarm": name}
    assert described()[0]["Threshold"] == 2
    client("cloudformation").delete_stack(StackName="computed")
    assert eventually(lambda: not described())
