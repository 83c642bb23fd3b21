"""The scenarios of tests/integration on AWS itself, and what the emulator's adapter takes for AWS's conduct."""

from test_conformance_lambda import (  # noqa: F401
    test_a_throttled_function_is_a_too_many_requests_exception,
    test_simultaneous_cold_starts_each_get_a_process,
    test_the_name_of_an_exception_is_the_error_that_a_retry_names,
    test_what_a_state_machine_invokes_is_counted,
    test_what_is_reserved_for_a_function_holds_for_its_versions,
)
from test_conformance_stepfunctions import (  # noqa: F401
    test_full_jitter_draws_the_delay_of_a_retry,
    test_max_delay_seconds_limits_the_delay_of_a_retry,
    test_the_input_of_a_task_is_limited_and_states_all_does_not_catch_it,
    test_the_output_of_a_state_is_limited,
)
from test_workflow import (  # noqa: F401
    test_a_broken_image_is_named,
    test_a_large_photograph_is_shrunk_on_its_way_and_classified,
    test_a_missing_object_is_named_and_not_retried,
    test_a_picture_taken_with_the_camera_turned_is_classified_upright,
    test_an_execution_brings_its_own_threshold,
    test_an_image_that_the_model_is_sure_about_is_accepted,
    test_an_object_beside_the_prefix_starts_nothing_nor_does_a_folder,
    test_an_upload_starts_an_execution_whatever_its_key,
    test_input_that_is_not_valid_is_named_with_its_field,
    test_low_confidence_goes_to_review_and_is_no_error_of_a_function,
    test_other_keys_of_the_input_do_not_travel,
    test_technical_failures_reach_the_failure_queue_and_low_confidence_does_not,
)
