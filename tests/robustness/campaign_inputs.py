"""The inputs of the campaign: number -> (what and what has to happen, its tests)."""

_COSTS_ITS_RECORD = (
    "test_inputs.py::test_a_picture_that_cannot_be_used_costs_its_record_and_the_reason_is_told"
)
_FOOLS = "test_rewards.py::test_text_that_fools_a_peer_is_not_correct"
_FOOLS_NUMBERS = "test_rewards.py::test_a_number_that_fools_a_peer_earns_nothing"
_NO_FORMAT = "test_rewards.py::test_form_that_only_looks_right_is_malformed_in_every_mode"
_EVERY_REWARD = "test_rewards.py::test_thoughts_and_text_around_the_block_earn_nothing"
_BOXES_READ = "test_answers.py::test_boxes_of_the_grammar_are_read"
_BOX_MALFORMED = "test_answers.py::test_a_malformed_item_is_counted_and_spoils_no_other"
_BOX_OUTSIDE = "test_answers.py::test_text_outside_the_grammar_of_boxes_is_none"
_BOXES_PAID = "test_rewards.py::test_found_boxes_are_paid_as_worked_out_by_hand"
_BOX_PAID = "test_rewards.py::test_grounding_pays_the_plain_iou_of_exactly_one_box"
_HOSTILE_NUMBERS = "test_answers.py::test_hostile_numbers_are_none_and_take_no_time"
_HOSTILE_ANSWERS = "test_answers.py::test_a_hostile_answer_of_100_kb_takes_under_50_ms"
_HOSTILE_TEXTS = "test_rewards.py::test_a_hostile_text_of_100_kb_takes_under_50_ms"
_CODE = (
    "test_inputs_text.py::test_i57_i58_text_that_looks_like_code_is_worth_nothing_and_runs_nothing"
)
_BAD_JSON = "test_rows.py::test_bad_json_is_refused_with_file_and_line"
_MEANT_BOXES = "test_box_formats.py::test_boxes_that_cannot_be_meant_are_refused_with_their_id"
_COCO_BOXES = "test_coco.py::test_boxes_that_cannot_be_meant_are_refused_by_annotation"
_GROUND_BOXES = "test_coco.py::test_grounded_boxes_that_cannot_be_meant_are_refused_by_row"
_BAD_SOLUTIONS = "test_rows.py::test_solutions_that_mean_nothing_are_refused_with_their_id"
_OUT_OF_FOLDER = "test_rows.py::test_image_paths_cannot_leave_the_folder"
_OUT_OF_TABLE = "test_labelled.py::test_image_paths_that_leave_the_folder_and_urls_are_refused"
_ONE_FAULT = "test_scoring.py::test_a_fault_is_counted_shown_and_costs_its_own_group_alone"
_ANY_FAULT = "test_scoring.py::test_whatever_a_reward_does_it_costs_its_completions_and_no_more"
_IMPOSSIBLE = "test_config.py::test_an_impossible_value_is_one_line_that_names_the_flag"

INPUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    # ---- images
    "I1": (
        "CMYK JPEG: read in its true colours",
        ("test_image.py::test_i1_cmyk_jpeg_is_read_in_its_true_colours",),
    ),
    "I2": (
        "palette and colour-key transparency: composited on white",
        (
            "test_image.py::test_i2_palette_transparency_is_composited_on_white",
            "test_image.py::"
            "test_i2_one_transparent_colour_in_gray_rgb_and_bilevel_png_becomes_white",
        ),
    ),
    "I3": (
        "modes 1, L, LA, PA: read, alpha toward white",
        (
            "test_image.py::test_i3_alpha_blends_toward_white_in_rgba_la_and_pa",
            "test_image.py::test_i3_bilevel_and_gray_keep_their_values",
        ),
    ),
    "I4": (
        "float or 32-bit TIFF: skipped, counted, the mode named",
        ("test_image.py::test_i4_float_and_32_bit_pictures_are_refused", _COSTS_ITS_RECORD),
    ),
    "I5": (
        "mode La and the like: skipped, counted, the mode named",
        (
            "test_image.py::test_i5_modes_without_one_reading_are_refused_by_name",
            "test_inputs.py::test_i5_a_picture_in_a_mode_without_one_reading_costs_its_record_only",
        ),
    ),
    "I6": (
        "invalid EXIF or XMP: read, unrotated",
        (
            "test_image.py::test_i6_invalid_exif_leaves_the_picture_unrotated",
            "test_image.py::test_i6_invalid_xmp_leaves_the_picture_unrotated",
            "test_inputs.py::test_i6_a_picture_with_broken_exif_loses_its_rotation_and_no_record",
        ),
    ),
    "I7": (
        "file cut in half or short of its end: skipped and counted",
        (
            "test_image.py::test_i7_a_file_cut_in_half_is_refused_and_the_whole_one_is_read",
            "test_image.py::test_i7_a_jpeg_without_its_last_two_bytes_is_refused",
            "test_image.py::test_i7_a_png_with_one_flipped_byte_or_no_end_is_refused",
            _COSTS_ITS_RECORD,
        ),
    ),
    "I8": (
        "empty file: skipped and counted",
        ("test_image.py::test_i8_an_empty_file_is_refused", _COSTS_ITS_RECORD),
    ),
    "I9": (
        "HTML page named .jpg: skipped and counted, named as such",
        (
            "test_image.py::test_i9_i13_foreign_formats_are_refused_by_name",
            "test_rows.py::test_i07_i08_i09_unreadable_images_cost_their_record_only",
            _COSTS_ITS_RECORD,
        ),
    ),
    "I10": (
        "18 KB of 144 megapixels: skipped by its header, undecoded",
        (
            "test_image.py::test_i10_a_small_file_of_many_pixels_is_refused_undecoded",
            "test_image.py::test_i10_the_cap_is_exact_and_ignores_pillows_own_setting",
            "test_inputs.py::test_i10_a_sound_file_of_18_kb_and_144_megapixels_is_refused_at_once",
            _COSTS_ITS_RECORD,
        ),
    ),
    "I11": (
        "201:1 and 4 000 000 x 1: skipped with the ratio",
        (
            "test_image.py::test_i11_aspect_ratios_above_200_are_refused_with_the_ratio",
            _COSTS_ITS_RECORD,
        ),
    ),
    "I12": (
        "animation: its first frame",
        ("test_image.py::test_i12_an_animation_gives_its_first_frame",),
    ),
    "I13": (
        "SVG, HEIC, PDF: skipped, named, never handed to a program",
        (
            "test_image.py::test_i9_i13_foreign_formats_are_refused_by_name",
            "test_image.py::test_eps_is_never_handed_to_an_external_program",
            "test_labelled.py::test_pictures_in_foreign_formats_are_counted_not_overlooked",
            _COSTS_ITS_RECORD,
        ),
    ),
    "I14": (
        "missing images: error with the first five and their lines",
        (
            "test_image.py::test_i14_a_missing_file_is_refused",
            "test_rows.py::test_i14_missing_images_are_refused_with_the_first_five",
            "test_labelled.py::test_missing_images_are_refused_with_the_first_five_rows_and_a_hint",
        ),
    ),
    "I15": (
        "paths out of the folder, by .., root, link or drive: error with the record",
        (
            _OUT_OF_FOLDER,
            _OUT_OF_TABLE,
            "test_rows.py::test_i15_a_windows_path_is_a_missing_file",
            "test_labelled.py::test_a_symbolic_link_out_of_the_folder_is_refused",
            "test_coco.py::test_images_and_categories_that_are_not_usable_are_refused",
        ),
    ),
    "I16": (
        "directory, pipe, device as an image or a data set: error, no hang",
        (
            "test_image.py::test_i16_directories_fifos_and_devices_are_refused_without_hanging",
            "test_rows.py::test_i16_pipes_and_folders_are_refused_without_hanging",
            "test_rows.py::test_i16_images_that_are_no_regular_files_are_refused_without_hanging",
            "test_labelled.py::"
            "test_an_image_name_that_is_no_regular_file_is_refused_without_hanging",
        ),
    ),
    "I17": (
        "http, file and data URLs: error",
        (
            "test_image.py::test_i17_urls_are_refused",
            "test_rows.py::test_i17_urls_are_refused",
            "test_labelled.py::test_urls_are_refused",
            _OUT_OF_FOLDER,
            _OUT_OF_TABLE,
        ),
    ),
    "I18": (
        "a name in another case or Unicode form: error with a hint",
        (
            "test_rows.py::test_i18_a_missing_file_is_refused_with_a_hint",
            "test_labelled.py::test_a_missing_path_is_refused_with_a_hint_for_another_case",
            "test_inputs.py::"
            "test_i18_an_image_named_in_another_unicode_form_is_refused_with_a_hint",
        ),
    ),
    "I19": (
        "picture lost during a run: one line, the last step saved, exact once it is back "
        "(differs: not skipped, for then the run would be one of other data)",
        (
            "test_inputs.py::"
            "test_i19_a_picture_lost_during_a_run_stops_it_by_name_and_costs_no_finished_step",
            "test_resume.py::test_other_data_under_the_same_name_are_refused",
        ),
    ),
    # ---- records
    "I20": (
        "empty set: error",
        (
            "test_rows.py::test_i20_an_empty_set_is_refused",
            "test_coco.py::test_i20_a_file_without_boxes_is_refused",
            "test_labelled.py::test_an_empty_folder_is_refused",
            "test_labelled.py::test_an_empty_table_is_refused",
        ),
    ),
    "I21": (
        "fewer records than a step asks: repeated, with a warning",
        (
            "test_run.py::test_i21_fewer_examples_than_a_step_asks_repeat_with_a_warning",
            "test_train_grpo.py::"
            "test_a_step_larger_than_the_data_draws_other_numbers_for_repeated_examples",
        ),
    ),
    "I22": (
        "more shots than a class has images: error listing the classes",
        (
            "test_labelled.py::test_a_class_with_too_few_images_is_refused_by_name_and_count",
            "test_coco.py::test_i22_categories_with_too_few_images_are_listed",
            "test_run.py::test_too_few_images_for_the_shots_is_one_line",
        ),
    ),
    "I23": (
        "BOM, CRLF, blank lines: read; bad JSON, UTF-16: error with file and line",
        ("test_rows.py::test_i23_bom_crlf_and_blank_lines_are_read", _BAD_JSON),
    ),
    "I24": (
        "a line of 200 MB, nesting of 100 000: error at once",
        (
            "test_rows.py::test_i24_200_mb_in_one_line_are_refused_at_once",
            "test_rows.py::test_i24_a_line_of_more_than_the_limit_is_refused_without_reading_on",
            "test_rows.py::test_i24_a_json_file_beyond_the_limit_is_refused_unread",
            _BAD_JSON,
        ),
    ),
    "I25": (
        "NaN, 1e999, a negative box in the truth: error with the id",
        (
            _BAD_JSON,
            _BAD_SOLUTIONS,
            _MEANT_BOXES,
            _COCO_BOXES,
            _GROUND_BOXES,
            "test_coco.py::test_i25_nan_in_the_file_is_refused_by_place_and_id",
        ),
    ),
    "I26": (
        "missing column: error listing the columns",
        (
            "test_rows.py::test_i26_columns_of_no_schema_are_refused_with_the_columns_found",
            "test_rows.py::test_i26_a_later_row_without_a_column_is_refused_by_id",
            "test_rows.py::test_i26_doubled_columns_of_a_table_are_refused",
            "test_labelled.py::test_missing_columns_are_refused_with_the_columns_found",
            "test_coco.py::test_i26_other_json_files_are_refused_with_what_they_hold",
            "test_coco.py::test_i26_other_layouts_are_refused_with_what_is_accepted",
        ),
    ),
    "I27": (
        "empty solution: skipped and counted, and no target of a reward",
        (
            "test_rows.py::test_rows_with_an_empty_cell_are_skipped_and_counted",
            "test_labelled.py::test_rows_without_an_answer_are_skipped_and_counted",
            "test_rewards.py::test_an_empty_or_endless_target_raises_whatever_the_text",
        ),
    ),
    "I28": (
        "pixel boxes that all end below 1000 on large images: doubted",
        (
            "test_box_formats.py::"
            "test_i28_pixel_boxes_that_all_end_below_1000_on_large_images_are_doubted",
            "test_coco.py::test_i28_pixel_boxes_that_look_normalised_are_doubted",
            "test_coco.py::test_i28_grounded_boxes_that_look_normalised_are_doubted",
        ),
    ),
    "I29": (
        "xywh given as xyxy and the other way round: error with a hint",
        (_MEANT_BOXES, _COCO_BOXES, _GROUND_BOXES),
    ),
    "I30": (
        "COCO crowds, unknown categories and images: skipped",
        (
            "test_coco.py::test_i30_annotations_of_unknown_images_and_categories_are_skipped",
            "test_coco.py::test_i30_crowds_are_no_boxes_and_neither_shots_nor_negatives",
            "test_coco.py::test_i30_boxes_without_area_are_skipped",
        ),
    ),
    "I31": (
        "labels inside labels: exact match only",
        (
            _FOOLS,
            "test_answers.py::test_names_that_differ_stay_different",
            "test_labelled.py::test_similar_names_stay_different_classes",
        ),
    ),
    "I32": (
        "control tokens in a question: plain text",
        (
            "test_processor.py::test_control_tokens_inside_a_question_stay_plain_text",
            "test_rows.py::test_i32_marks_of_the_template_stay_plain_text",
            "test_rows.py::test_i32_more_image_marks_than_images_are_refused",
        ),
    ),
    "I33": (
        "prompt over the limit: skipped and counted, never cut",
        (
            "test_run.py::test_i33_one_prompt_over_the_limit_is_left_out_counted_and_never_cut",
            "test_processor.py::test_a_prompt_longer_than_the_limit_is_refused_and_never_cut",
        ),
    ),
    "I34": (
        "pickles and arrays as data: refused unopened",
        (
            "test_rows.py::test_i34_pickles_and_arrays_are_refused_unopened",
            "test_labelled.py::test_other_files_are_refused_unopened_with_what_is_accepted",
            "test_coco.py::test_i26_other_layouts_are_refused_with_what_is_accepted",
            "test_security.py::test_no_file_runs_what_it_reads",
        ),
    ),
    "I35": (
        "solutions of all types: normalised, or error",
        ("test_rows.py::test_solutions_of_all_types_become_text", _BAD_SOLUTIONS),
    ),
    "I36": (
        "a picture in train and test, by hash: dropped from the test and counted, or kept on one "
        "side (differs: more than a warning)",
        (
            "test_labelled.py::test_held_out_copies_of_training_images_are_dropped_with_a_count",
            "test_tasks.py::test_i36_all_questions_about_a_picture_are_on_one_side_even_of_a_copy",
        ),
    ),
    "I37": (
        "one class only: error, since rewards would be constant (differs: not a warning)",
        (
            "test_labelled.py::test_a_single_class_is_refused",
            "test_labelled.py::"
            "test_one_class_only_is_refused_and_spellings_of_one_name_are_one_class",
        ),
    ),
    # ---- model text
    "I38": ("nothing: 0, format 0", (_FOOLS, _NO_FORMAT, _EVERY_REWARD, _BOXES_PAID)),
    "I39": (
        "the end token alone: 0, one token in the mask, a finite loss",
        (
            "test_rewards.py::test_i39_a_completion_of_white_space_or_nothing_is_worth_zero",
            "test_inputs_text.py::"
            "test_i39_a_completion_that_is_its_end_token_alone_has_one_token_and_a_finite_loss",
        ),
    ),
    "I40": (
        "no end at the limit: scored on what is there, counted in clipped_ratio "
        "(differs: not masked; --overlong_weight lowers its reward)",
        (
            "test_rewards.py::test_i40_a_cut_off_completion_is_scored_on_what_is_there",
            "test_inputs_text.py::"
            "test_i40_completions_without_an_end_are_scored_as_they_are_and_counted",
            "test_sample.py::test_completions_end_at_their_first_end_token_and_say_why",
            "test_scoring.py::"
            "test_shaping_parts_are_added_with_their_weights_and_logged_unweighted",
        ),
    ),
    "I41": ("empty answer block: 0, format 0", (_FOOLS, _NO_FORMAT, _FOOLS_NUMBERS)),
    "I42": (
        "a list of answers: 0",
        (_FOOLS, "test_rewards.py::test_a_choice_is_the_one_letter", _FOOLS_NUMBERS),
    ),
    "I43": ("one letter or a prefix of the label: 0", (_FOOLS,)),
    "I44": ("nested or unclosed tags: 0, format 0", (_FOOLS, _NO_FORMAT, _EVERY_REWARD)),
    "I45": (
        "an answer only in the thoughts: 0",
        (
            "test_answers.py::test_i45_an_answer_inside_a_thought_of_any_kind_is_none",
            _FOOLS,
            _FOOLS_NUMBERS,
            _NO_FORMAT,
            _EVERY_REWARD,
            "test_rewards.py::test_an_answer_only_inside_a_step_pays_nothing",
        ),
    ),
    "I46": (
        "NaN, Infinity, 1e999 in boxes: a false box; -0 is 0",
        (_BOX_MALFORMED, _BOXES_READ, _BOXES_PAID, _BOX_PAID),
    ),
    "I47": (
        "an integer of 5000 digits: 0",
        (_HOSTILE_NUMBERS, _BOX_MALFORMED, _BOX_OUTSIDE, _FOOLS_NUMBERS, _BOXES_PAID),
    ),
    "I48": ("coordinates as strings: a false box", (_BOX_MALFORMED, _BOXES_PAID)),
    "I49": ("3 or 5 coordinates: a false box", (_BOX_MALFORMED, _BOXES_PAID)),
    "I50": (
        "box without area: a false box, no division by zero",
        (
            _BOX_MALFORMED,
            _BOXES_PAID,
            _BOX_PAID,
            "test_rewards.py::test_iou_of_any_boxes_is_in_range",
        ),
    ),
    "I51": ("1e308: cut to the image, finite", (_BOXES_READ, _BOXES_PAID)),
    "I52": (
        "10 000 boxes: under 50 ms, almost nothing",
        (
            "test_rewards.py::test_i52_ten_thousand_boxes_take_under_50_ms_and_earn_almost_nothing",
            "test_answers.py::test_i52_items_beyond_the_cap_are_malformed",
            _HOSTILE_ANSWERS,
        ),
    ),
    "I53": ("box of the whole image: its plain IoU", (_BOXES_PAID, _BOX_PAID)),
    "I54": ("label missing, null or a list: a false box", (_BOX_MALFORMED, _BOXES_PAID)),
    "I55": (
        "fence, single dict, Python's quotes: read; anything else: 0 "
        "(differs: quotes are exchanged, there is no literal_eval)",
        (
            _BOXES_READ,
            _BOX_OUTSIDE,
            "test_answers.py::test_every_dialect_reads_back_what_was_written",
            _BOXES_PAID,
        ),
    ),
    "I56": ("nan, inf, -inf as a number: 0", (_HOSTILE_NUMBERS, _FOOLS_NUMBERS, _CODE)),
    "I57": (
        "power towers, 3000 braces, factorials: 0 in under 50 ms "
        "(differs: nothing is evaluated, so there is no deadline to count)",
        (_CODE, _FOOLS, _FOOLS_NUMBERS, _HOSTILE_NUMBERS, _HOSTILE_ANSWERS, _HOSTILE_TEXTS),
    ),
    "I58": (
        "text that looks like code: 0, never run",
        (
            _CODE,
            _FOOLS,
            _FOOLS_NUMBERS,
            _BOX_OUTSIDE,
            "test_answers.py::test_answers_import_the_standard_library_only_and_evaluate_nothing",
            "test_rewards.py::"
            "test_rewards_import_answers_and_the_standard_library_only_and_evaluate_nothing",
        ),
    ),
    "I59": (
        "control tokens: cannot be sampled",
        (
            "test_inputs_text.py::test_i59_a_policy_that_wants_a_control_token_cannot_say_it",
            "test_processor.py::test_forbidden_is_every_control_token_but_the_end_and_the_padding_rows",
            "test_sample.py::"
            "test_forbidden_tokens_never_occur_and_their_probability_is_exactly_zero",
        ),
    ),
    "I60": (
        "invalid UTF-8: U+FFFD, the ids survive",
        (
            "test_processor.py::"
            "test_broken_utf8_decodes_to_the_replacement_character_and_the_ids_survive",
            "test_report.py::test_broken_bytes_at_the_end_are_shown_as_such",
            _FOOLS,
        ),
    ),
    "I61": (
        "markup: inert in the report, under a policy that forbids scripts",
        (
            "test_inputs_text.py::"
            "test_i61_markup_is_shown_as_text_under_a_policy_that_forbids_everything",
            "test_report.py::test_hostile_text_is_shown_and_does_nothing",
        ),
    ),
    "I62": (
        "[/bold], {x}, %d: console and logs show them as they are",
        (
            "test_inputs_text.py::"
            "test_i62_text_that_looks_like_a_format_is_printed_and_logged_as_it_is",
            "test_inputs_text.py::test_i62_an_error_that_quotes_a_format_is_one_line",
            "test_report.py::test_hostile_text_is_shown_and_does_nothing",
        ),
    ),
    "I63": (
        "=cmd|... in a CSV export (differs: there is no CSV export, and there must be none)",
        ("test_inputs_text.py::test_i63_nothing_is_exported_that_a_spreadsheet_would_run",),
    ),
    # ---- reward functions
    "I64": (
        "raises: counted, the first traceback shown; over a fifth of a step: an end with the last "
        "step saved (differs: out of the comparison, not 0)",
        (
            _ONE_FAULT,
            _ANY_FAULT,
            "test_scoring.py::test_more_faults_than_a_fifth_of_a_step_stop_the_run",
            "test_scoring.py::test_only_the_first_fault_of_a_run_is_shown",
            "test_run.py::test_a_users_reward_trains_and_its_faults_are_in_the_metrics",
            "test_inputs_text.py::"
            "test_i64_a_reward_that_begins_to_fail_ends_the_run_with_its_last_step_saved",
        ),
    ),
    "I65": (
        "None: out of the group's mean, advantage 0 (differs: asked for, so counted as no fault)",
        (
            "test_scoring.py::test_none_leaves_a_completion_out_of_its_groups_comparison",
            "test_scoring.py::test_a_step_without_any_value_gives_no_gradient",
        ),
    ),
    "I66": (
        "wrong number of values: counted (differs: the group is out of the comparison; an error "
        "above a fifth of a step)",
        (
            _ONE_FAULT,
            _ANY_FAULT,
            "test_inputs_text.py::test_i66_a_wrong_number_of_values_costs_the_whole_group",
        ),
    ),
    "I67": (
        "NaN, inf: counted, never paid (differs: out of the comparison, not 0); in a task's own "
        "reward an error",
        (
            _ONE_FAULT,
            _ANY_FAULT,
            "test_inputs_text.py::"
            "test_i67_a_value_that_is_no_finite_number_is_counted_and_never_paid",
            "test_scoring.py::test_a_task_reward_that_is_not_finite_names_the_example",
            "test_run.py::test_a_reward_that_is_not_finite_is_one_line",
        ),
    ),
    "I68": (
        "endless loop in Python or C: killed at the deadline, counted (differs: not 0)",
        (
            _ANY_FAULT,
            "test_inputs_text.py::"
            "test_i68_a_loop_in_c_that_never_lets_python_run_is_killed_at_the_deadline",
        ),
    ),
    "I69": (
        "10 MB of print: swallowed, its end shown with a fault",
        (
            _ANY_FAULT,
            "test_inputs_text.py::"
            "test_i69_ten_megabytes_of_print_are_swallowed_and_the_values_count",
        ),
    ),
    # ---- command line and model directory
    "I70": (
        "unknown flag: error with the nearest one",
        (
            "test_config.py::test_an_unknown_flag_is_one_line_with_the_nearest_flag",
            "test_config.py::test_an_unknown_word_near_no_flag_points_to_help",
            "test_inputs_cli.py::test_i70_every_script_names_the_nearest_flag",
        ),
    ),
    "I71": (
        "impossible values: error naming the flag",
        (
            _IMPOSSIBLE,
            "test_config.py::test_no_number_field_takes_minus_one_and_no_float_takes_nan",
            "test_config.py::test_a_real_script_ends_with_code_2_and_one_line",
            "test_inputs_cli.py::test_i71_evaluation_refuses_impossible_values_too",
        ),
    ),
    "I72": (
        "output directory in use, unwritable, on a full disk: error",
        (
            "test_run.py::test_an_output_directory_in_use_is_not_overwritten",
            "test_inputs_cli.py::test_i72_an_output_directory_that_cannot_be_made_is_one_line",
            "test_inputs_cli.py::test_i72_a_disk_that_is_full_at_the_start_is_one_line",
            "test_inputs_cli.py::test_i72_a_read_only_folder_is_one_line",
        ),
    ),
    "I73": (
        "resuming a missing, empty or foreign directory: error",
        (
            "test_resume.py::test_what_cannot_be_resumed_is_one_line",
            "test_inputs_cli.py::test_i73_a_directory_that_is_no_run_cannot_be_resumed",
        ),
    ),
    "I74": (
        "model directory that cannot be used: error naming file or key "
        "(differs: adapters are not read at all)",
        (
            "test_weights.py::test_damaged_weights_are_refused_by_name_and_nothing_is_written",
            "test_weights.py::test_a_config_that_cannot_be_meant_is_refused_by_name",
            "test_processor.py::test_files_that_are_missing_or_do_not_fit_are_refused_by_name",
            "test_inputs_cli.py::"
            "test_i74_a_model_directory_that_cannot_be_used_is_one_line_in_every_script",
        ),
    ),
    "I75": (
        "no GPU, no such dtype: error; a tracker without login or network: a warning",
        (
            "test_inputs_cli.py::test_i75_a_gpu_that_is_not_there_is_one_line",
            "test_inputs_cli.py::test_i75_a_device_of_another_kind_is_one_line",
            "test_inputs_cli.py::"
            "test_i75_a_dtype_that_is_not_supported_is_refused_with_the_choices",
            "test_trackers.py::test_wandb_without_a_login_or_network_stays_offline_and_never_asks",
            "test_trackers.py::test_a_wandb_that_would_ask_is_not_used",
            "test_trackers.py::test_a_fault_of_the_tracker_is_one_line_and_the_run_goes_on",
            "test_trackers.py::test_a_tracker_that_is_not_installed_is_one_line",
        ),
    ),
    "I76": (
        "no stdin, dumb terminal, ASCII locale, spaces in paths, no home: works",
        (
            "test_inputs_cli.py::"
            "test_i76_a_run_works_without_stdin_home_terminal_or_unicode_and_with_spaces_in_paths",
            "test_inputs_cli.py::test_i76_a_file_name_that_the_locale_cannot_spell_is_one_line",
        ),
    ),
}
