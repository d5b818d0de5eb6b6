"""The oracles of the campaign: number -> (what and what has to happen, its tests)."""

SAMPLER_IS_TRAINER = "test_sample.py::test_sampling_logps_equal_the_training_forward"
MICRO_BATCHES = "test_train_grpo.py::test_micro_batches_of_any_size_and_order_give_one_gradient"
PACKED = "test_shared_prefix.py::test_packed_logps_and_gradients_equal_the_repeated_computation"
TWO_RANKS = "test_ranks.py::test_two_ranks_make_the_run_of_one"
SAME_DRAWS = "test_ranks.py::test_the_same_seed_draws_the_same_completions_in_the_same_order"
CHANGED = "test_weights.py::"
CHANGED += "test_a_changed_model_loads_bit_equal_here_and_completely_in_transformers"

ORACLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "O1": (
        "loss and its gradient to the logits: Python loops, float64 1e-10, float32 1e-5 "
        "(here: grpo, dapo, dr_grpo; an empty completion is refused)",
        (
            "test_oracles.py::test_the_loss_and_its_gradient_to_the_logits_equal_loops_in_float64",
            "test_oracles.py::test_the_loops_meet_both_sides_of_the_clip_and_the_flat_group",
            "test_train_grpo.py::test_the_loss_and_its_gradient_equal_the_loop",
            "test_shared_prefix.py::test_a_completion_without_tokens_is_refused",
        ),
    ),
    "O2": (
        "the same tensors through TRL's loss: equal to 1e-10 (skipped where trl is not installed)",
        ("test_oracles.py::test_the_loss_and_its_gradient_equal_trl_s",),
    ),
    "O3": (
        "identities: reinforce at ratio 1, flat groups exactly 0, K3, sums, shift and scale",
        (
            "test_oracles.py::test_at_ratio_one_every_loss_type_has_the_gradient_of_reinforce",
            "test_oracles.py::"
            "test_advantages_sum_to_zero_and_ignore_shift_and_scale_of_the_rewards",
            "test_train_grpo.py::"
            "test_flat_groups_have_exactly_zero_gradient_and_skipping_them_changes_nothing",
            "test_train_grpo.py::"
            "test_the_kl_estimate_is_never_negative_zero_only_where_equal_and_unbiased",
            "test_train_grpo.py::test_clipping_stops_the_push_in_the_direction_of_the_advantage_only",
            "test_advantage.py::"
            "test_a_group_of_equal_rewards_gives_exact_zeros_whatever_the_rounding",
        ),
    ),
    "O4": (
        "finite differences in float64 on 50 random logits",
        (
            "test_oracles.py::test_the_gradient_equals_finite_differences_on_fifty_logits",
            "test_logprob.py::test_the_torch_path_passes_gradcheck_in_float64",
        ),
    ),
    "O5": (
        "a step cut into micro-batches of any size and order: one gradient, float64 1e-12 "
        "(here: no bnpo)",
        (
            "test_oracles.py::test_a_step_cut_and_ordered_in_any_way_has_one_gradient_in_float64",
            MICRO_BATCHES,
            "test_train_sft.py::test_micro_batches_change_nothing",
        ),
    ),
    "O6": (
        "two ranks and one: parameters 1e-6, metrics, completions; sharded; a rank without spread",
        (
            TWO_RANKS,
            SAME_DRAWS,
            "test_ranks.py::test_a_rank_without_spread_was_there",
            "test_ranks.py::test_shares_cover_everything_once_and_in_order",
        ),
    ),
    "O7": (
        "transformers' Qwen2-VL: logits, every gradient, positions, prompt ids, pixels bit-equal",
        (
            "test_parity.py::test_logits_and_every_parameter_gradient_equal_transformers",
            "test_parity.py::test_a_packed_batch_equals_transformers_padded_batch",
            "test_parity.py::test_rope_positions_equal_get_rope_index",
            "test_processor.py::test_prompt_ids_equal_the_chat_template_of_the_directory",
            "test_image.py::test_patches_equal_the_reference_processor_bit_for_bit_at_random_sizes",
            "test_image.py::test_tiny_and_extreme_pictures_equal_the_reference",
        ),
    ),
    "O8": (
        "sampler and training log-probabilities: float32 max 1e-4, bfloat16 mean 2e-2, T 0.7 1 1.3",
        (
            SAMPLER_IS_TRAINER,
            "test_sample.py::test_in_bfloat16_sampling_and_training_stay_close",
            "test_train_grpo.py::test_the_update_reports_how_far_sampling_and_training_differ",
            "test_shared_prefix.py::test_entropy_is_that_of_the_sampling_distribution",
        ),
    ),
    "O9": (
        "cached decoding and full forwards, rows that end apart, and again after another batch",
        (
            "test_sample.py::test_temperature_zero_takes_the_likeliest_token_of_a_full_forward",
            "test_parity.py::test_twenty_greedy_tokens_with_our_cache_equal_transformers_generate",
            "test_sample.py::test_groups_that_have_ended_leave_and_the_others_go_on_as_if_alone",
            "test_sample.py::"
            "test_generation_does_not_move_the_model_and_the_cache_is_fresh_each_time",
            SAMPLER_IS_TRAINER,
        ),
    ),
    "O10": ("shared prefix and separate forwards: log-probabilities and gradients", (PACKED,)),
    "O11": (
        "another picture in one question changes that group alone",
        (
            "test_shared_prefix.py::test_swapping_one_image_changes_only_its_own_group",
            "test_shared_prefix.py::test_a_completion_does_not_see_its_neighbours",
        ),
    ),
    "O12": (
        "completions hold no prompt token and end with the first end token",
        (
            "test_sample.py::test_completions_end_at_their_first_end_token_and_say_why",
            "test_sample.py::test_a_completion_never_contains_its_prompt",
        ),
    ),
    "O13": (
        "recomputed, cut, padded or not: 30 steps are the same (here: nothing is compiled)",
        (
            "test_oracles.py::test_thirty_steps_are_the_same_in_every_form_of_the_computation",
            "test_shared_prefix.py::test_recomputing_layers_keeps_less_and_changes_no_gradient",
            "test_shared_prefix.py::test_sequences_without_padding_equal_padded_rows",
            "test_gpu.py::test_the_flash_kernel_equals_padded_rows",
        ),
    ),
    "O14": (
        "the reference is the starting model and stays it (here: no LoRA, all weights are trained)",
        ("test_oracles.py::test_the_reference_is_the_starting_model_and_stays_it",),
    ),
    "O15": (
        "kernels and float64, forward and backward: odd sizes, 151,936 words, 1e4, strides, NaN",
        (
            "test_oracles.py::test_the_head_of_qwen2_vl_s_vocabulary_equals_float64",
            "test_logprob.py::test_error_is_at_most_twice_that_of_the_float32_reference",
            "test_logprob.py::test_logits_of_ten_thousand_neither_overflow_nor_lose_accuracy",
            "test_logprob.py::test_whole_forbidden_tiles_and_chunks_leave_no_trace",
            "test_logprob.py::test_strided_inputs_equal_their_contiguous_copies",
            "test_logprob.py::test_a_hidden_state_that_is_not_finite_spoils_its_own_row_only",
            "test_decode.py::test_every_row_sees_its_prefix_and_its_suffix_and_nothing_else",
            "test_advantage.py::test_error_is_at_most_twice_that_of_the_float32_reference",
            "test_compile.py::test_the_logprob_kernels_compile_without_spills",
        ),
    ),
    "O16": (
        "chi-square of drawn tokens, rows of a group independent, any batch draws the same",
        (
            "test_oracles.py::"
            "test_first_tokens_of_the_model_follow_its_softmax_and_are_independent",
            "test_sample.py::test_tokens_follow_the_distribution_by_a_chi_square_test",
            "test_sample.py::test_what_is_drawn_does_not_depend_on_the_batch_it_is_drawn_in",
            "test_sample.py::test_the_completions_of_a_group_differ_from_their_first_token_on",
            "test_sample.py::test_the_random_numbers_differ_in_each_of_their_four_arguments",
            SAME_DRAWS,
        ),
    ),
    "O17": (
        "optimizer and torch.optim.AdamW, table of learning rates, clipping and clip_grad_norm_",
        (
            "test_train_grpo.py::test_an_optimizer_step_equals_torch_adamw_with_clipping",
            "test_oracles.py::test_the_learning_rate_follows_its_table",
            "test_oracles.py::"
            "test_clipping_scales_the_gradient_as_torch_does_and_reports_the_norm_before",
        ),
    ),
    "O18": (
        "rewards: painted boxes, pycocotools, assignments, order, extra boxes, nothing above exact",
        (
            "test_rewards.py::test_o18_iou_is_that_of_painted_boxes",
            "test_tasks.py::test_average_precision_equals_pycocotools_on_files",
            "test_rewards.py::test_o18_greedy_hits_never_sum_to_more_than_the_best_assignment",
            "test_rewards.py::"
            "test_o18_greedy_hits_are_the_best_where_confidences_are_equal_and_objects_apart",
            "test_rewards.py::test_o18_the_graded_score_of_calls_is_the_best_assignment",
            "test_rewards.py::test_the_order_of_boxes_changes_nothing",
            "test_rewards.py::test_o18_an_extra_false_box_never_raises_the_total",
            "test_rewards.py::test_o18_nothing_earns_more_than_the_exact_boxes",
            "test_rewards.py::"
            "test_any_text_earns_the_same_twice_in_range_and_no_more_than_the_exact_answer",
        ),
    ),
    "O19": (
        "500 random sizes: patches put together again, boxes there and back, upright pictures",
        (
            "test_oracles.py::"
            "test_patches_of_500_random_upright_pictures_put_together_are_the_resized_picture",
            "test_box_formats.py::test_o19_round_trips_of_500_random_sizes_stay_within_half_a_pixel",
            "test_box_formats.py::test_o19_written_integers_are_half_a_unit_off_at_most",
            "test_box_formats.py::test_o19_boxes_of_exif_rotated_pictures_live_in_the_upright_image",
            "test_image.py::test_smart_resize_equals_the_reference_on_a_thousand_sizes",
        ),
    ),
    "O20": (
        "stopped or killed and resumed is the straight run, bit for bit, with any threads",
        (
            "test_resume.py::test_a_signal_saves_and_the_run_goes_on_exactly",
            "test_resume.py::test_kills_at_random_moments_are_survived_exactly",
            "test_resume.py::test_a_bfloat16_run_resumes_with_its_float32_masters",
            "test_resume.py::test_supervised_fine_tuning_resumes_exactly",
            "test_run.py::test_the_same_seed_repeats_a_run_bit_for_bit",
            "test_shared_prefix.py::test_threads_do_not_change_a_bit_from_one_time_to_the_next",
        ),
    ),
    "O21": (
        "saved and loaded bit-equal, files and keys of the source, complete in transformers",
        (
            CHANGED,
            "test_weights.py::test_saving_an_unchanged_model_writes_the_source_again",
            "test_bundled_base.py::test_transformers_loads_it_whole_and_says_the_same",
        ),
    ),
    "O22": (
        "planted bugs: every classic one is in the table, and one turns a test red "
        "(all of them: .ci/run)",
        (
            "test_benchmarks.py::test_every_bug_of_the_mutation_table_can_still_be_planted",
            "test_oracles.py::test_the_table_of_planted_bugs_has_every_classic_one",
            "test_oracles.py::test_a_planted_bug_turns_a_test_red_and_a_harmless_change_does_not",
            "test_oracles.py::test_a_bug_of_the_table_planted_in_a_copy_of_this_project_is_seen",
        ),
    ),
    "O23": (
        "the embedded model learns cls, count, ground in a few steps; wrong labels teach nothing",
        (
            "test_oracles.py::test_a_dozen_steps_teach_the_embedded_model",
            "test_oracles.py::test_wrong_labels_teach_nothing",
            "test_train_grpo.py::test_a_random_model_learns_a_toy_reward",
            "test_cls.py::test_shuffled_labels_are_a_derangement_of_the_classes",
        ),
    ),
}
