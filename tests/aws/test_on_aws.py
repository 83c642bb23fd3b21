"""The scenarios of tests/integration on AWS, and the conformance tests that the emulator's adapter must pass."""

from test_batches import (  # noqa: F401
    test_a_batch_decides_as_single_executions_do,
    test_a_prefix_is_classified_and_its_summary_is_an_event,
    test_an_empty_prefix_succeeds_and_says_so,
    test_an_invalid_input_fails_by_name_and_reaches_the_failure_queue,
    test_low_confidence_is_sent_to_review_only_if_the_input_asks,
    test_manifests_and_inventories_name_images_in_any_bucket_and_version,
    test_the_same_input_started_twice_is_two_batches,
    test_the_table_of_results_has_a_partition_for_each_batch,
)
from test_conformance_lambda import (  # noqa: F401
    test_a_retry_matches_the_class_name_of_an_exception,
    test_a_throttled_invocation_fails_with_too_many_requests_exception,
    test_invocations_by_a_state_machine_are_counted,
    test_reserved_concurrency_applies_to_every_version_of_a_function,
    test_simultaneous_cold_starts_each_get_a_process,
)
from test_conformance_stepfunctions import (  # noqa: F401
    test_full_jitter_randomises_the_delay_of_a_retry,
    test_max_delay_seconds_limits_the_delay_of_a_retry,
    test_the_input_of_a_task_has_a_maximum_size_and_states_all_does_not_catch_the_error,
    test_the_output_of_a_state_has_a_maximum_size,
)
from test_workflow import (  # noqa: F401
    test_a_broken_image_fails_by_name,
    test_a_large_photograph_is_shrunk_and_classified,
    test_a_missing_object_fails_by_name_without_a_retry,
    test_a_photograph_from_a_rotated_camera_is_classified_upright,
    test_an_execution_can_override_the_threshold,
    test_an_image_with_high_confidence_is_accepted,
    test_an_object_outside_the_prefix_or_a_folder_starts_no_execution,
    test_an_upload_starts_an_execution_whatever_its_key,
    test_invalid_input_fails_with_the_name_of_its_field,
    test_low_confidence_goes_to_review_and_is_no_function_error,
    test_other_keys_of_the_input_are_dropped,
    test_technical_failures_reach_the_failure_queue_and_low_confidence_does_not,
)
