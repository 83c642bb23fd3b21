"""What can go wrong with a training job on SageMaker, by name and with what to do about it."""

from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError
from sagemaker.core.helper.iam_role_resolver import RoleValidationError

REFUSED_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}


class LaunchError(Exception):
    """The job cannot be started, or came to nothing; the message says what to do."""


class InvalidOptionError(LaunchError):
    pass


class UnknownHyperparameterError(LaunchError):
    pass


class DataFolderError(LaunchError):
    pass


class CredentialsError(LaunchError):
    pass


class BucketError(LaunchError):
    pass


class RoleError(LaunchError):
    pass


class QuotaError(LaunchError):
    pass


class AwsError(LaunchError):
    pass


class TrainingFailedError(LaunchError):
    pass


class ModelArchiveError(LaunchError):
    pass


def explain(error, instance_type):
    """The LaunchError for an exception of boto3 or of SageMaker's SDK."""
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return CredentialsError("no AWS credentials were found: `aws configure`, `aws sso login`, or set AWS_PROFILE")
    if isinstance(error, RoleValidationError):
        return RoleError(" ".join(str(error).partition("\n\n")[0].split()))
    if not isinstance(error, ClientError):
        return AwsError(str(error))
    code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
    if code == "ResourceLimitExceeded":
        return QuotaError(
            f"your account's quota allows no more {instance_type} for training: ask for it at Service Quotas, or give "
            f"another --instance-type (a new account has CPU types and, as a rule, no GPUs). AWS said: {message}"
        )
    if code in REFUSED_CREDENTIALS:
        return CredentialsError(f"AWS refuses these credentials, renew them: {error.operation_name}: {message}")
    return AwsError(f"{error.operation_name}: {code}: {message}")
