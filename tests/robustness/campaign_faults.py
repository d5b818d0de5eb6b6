"""The faults of the campaign: number -> (what and what has to happen, its tests)."""

KILLED = "test_faults.py::test_a_run_killed_at_this_very_moment_goes_on_exactly"
ANYWHERE = "test_resume.py::test_kills_at_random_moments_are_survived_exactly"
SIGNAL = "test_resume.py::test_a_signal_saves_and_the_run_goes_on_exactly"
DAMAGED = "test_resume.py::test_a_damaged_checkpoint_is_named_and_the_one_before_is_used"
FAILING_DISK = "test_faults.py::test_a_failing_disk_is_named_and_leaves_what_was_there"
FULL_DISK = "test_faults.py::test_a_disk_that_stays_full_costs_steps_but_nothing_that_was_saved"
REWARD = "test_scoring.py::test_whatever_a_reward_does_it_costs_its_completions_and_no_more"
BY_NUMBER = "test_resume.py::test_the_newest_is_that_of_the_largest_step_whatever_the_clock_says"

FAULTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "F1": ("kill -9 in a rollout: resumed from the last save, exactly", (KILLED, ANYWHERE)),
    "F2": ("kill -9 in a backward: resumed from the last save, exactly", (KILLED, ANYWHERE)),
    "F3": ("kill -9 in the optimizer's step: the same, half an update is never seen", (KILLED,)),
    "F4": (
        "kill behind the rename of a checkpoint: found by number and sha256 (here: no pointer); "
        "one that is saved while the run is resumed is never passed over",
        (
            KILLED,
            "test_resume.py::test_a_save_that_was_cut_between_its_two_renames_is_undone",
            "test_resume.py::"
            "test_a_run_that_was_still_ending_when_its_checkpoint_was_chosen_is_not_forked",
        ),
    ),
    "F5": (
        "kill while an old checkpoint is removed: one that verifies stays, a half one is ignored",
        (
            KILLED,
            "test_resume.py::test_older_checkpoints_go_only_after_the_new_one_verifies",
            "test_resume.py::test_leftovers_of_saves_that_were_cut_are_removed_and_other_files_stay",
        ),
    ),
    "F6": (
        "disk full during a checkpoint: told in MB, old one whole, tried again, exit 2 at the end",
        (
            FULL_DISK,
            "test_resume.py::test_too_little_space_is_said_before_anything_is_written",
            "test_resume.py::test_a_save_that_fails_is_told_and_tried_again_at_the_next",
            "test_weights.py::"
            "test_a_disk_that_fills_up_while_saving_leaves_the_old_checkpoint_as_it_was",
        ),
    ),
    "F7": (
        "disk full in logs, report and stdout: training goes on, one warning",
        (
            "test_config.py::test_a_stdout_that_cannot_be_written_ends_a_script_and_no_training",
            "test_report.py::test_a_disk_that_is_full_costs_the_logs_and_not_the_run",
            "test_report.py::test_a_report_that_cannot_be_written_does_not_end_a_run",
        ),
    ),
    "F8": (
        "cut or altered shard: named, the checkpoint before is used; asked for itself, an error",
        (
            DAMAGED,
            "test_weights.py::test_damaged_weights_are_refused_by_name_and_nothing_is_written",
        ),
    ),
    "F9": ("optimizer state or manifest missing: the same", (DAMAGED,)),
    "F10": (
        "empty or garbled JSON in a checkpoint: the same",
        (DAMAGED, "test_resume.py::test_a_damaged_later_checkpoint_does_not_cost_the_good_ones"),
    ),
    "F11": (
        "read-only directory, EIO on flush, reading back or rename: told, old checkpoint whole",
        (
            FAILING_DISK,
            "test_faults.py::test_a_checkpoint_that_could_not_be_replaced_is_still_there",
        ),
    ),
    "F12": (
        "SIGTERM, SIGUSR1 anywhere in a step or an evaluation: saved, exit 143, 138, exact resume",
        (
            SIGNAL,
            "test_resume.py::test_a_real_process_saves_on_sigterm",
            "test_resume.py::test_a_run_that_is_stopped_again_and_again_is_the_same_too",
            "test_resume.py::test_with_several_updates_per_batch_a_signal_waits_for_the_step",
        ),
    ),
    "F13": (
        "SIGINT once: saved, exit 130, exact resume (here: nothing is compiled in a run)",
        (SIGNAL, "test_resume.py::test_code_from_outside_cannot_swallow_a_signal"),
    ),
    "F14": (
        "SIGINT twice: ends at once, without saving",
        ("test_resume.py::test_a_second_signal_ends_the_process_at_once_without_saving",),
    ),
    "F15": (
        "out of memory: half the micro-batch, same gradient; else one line naming the flags",
        (
            "test_train_grpo.py::test_where_memory_runs_out_half_the_micro_batch_gives_the_same_gradient",
            "test_train_grpo.py::test_one_group_that_does_not_fit_and_any_other_error_pass",
            "test_faults.py::test_out_of_memory_names_the_flags_and_keeps_the_steps_that_were_made",
            "test_resume.py::test_weights_that_are_on_their_way_are_not_saved",
        ),
    ),
    "F16": (
        "one rank of two raises: both end within 10 s and name rank and exception",
        ("test_ranks.py::test_an_error_of_one_rank_ends_all_of_them_and_loses_nothing",),
    ),
    "F17": (
        "one rank is killed: the others end, the checkpoint is whole",
        ("test_ranks.py::test_a_killed_rank_takes_the_others_along_and_leaves_checkpoints_whole",),
    ),
    "F18": (
        "one rank is slow: waited for and told, none is killed",
        ("test_ranks.py::test_a_slow_rank_is_waited_for",),
    ),
    "F19": (
        "a reward's process dies: replaced and counted, its completions left out (differs: not 0)",
        (
            REWARD,
            "test_faults.py::"
            "test_a_reward_process_killed_from_outside_is_replaced_and_its_completions_are_counted",
            "test_scoring.py::test_a_worker_ends_with_training_idle_or_busy",
        ),
    ),
    "F20": (
        "a loader's process dies (here: there is none, pictures are read in training itself)",
        ("test_faults.py::test_training_has_no_other_process_that_could_die",),
    ),
    "F21": (
        "the tracker raises: left alone with one warning",
        (
            "test_trackers.py::test_a_fault_of_the_tracker_is_one_line_and_the_run_goes_on",
            "test_trackers.py::test_a_tracker_that_is_not_installed_is_one_line",
        ),
    ),
    "F22": (
        "logs and report read while written: whole; half a last row is passed over, cut on resume",
        (
            "test_faults.py::test_logs_and_pages_are_whole_for_whoever_reads_them_meanwhile",
            "test_report.py::test_a_run_that_is_being_written_can_be_read",
            "test_report.py::test_a_page_is_replaced_whole",
            KILLED,
        ),
    ),
    "F23": (
        "power loss: files and directory are flushed before the rename; cut files are passed over",
        ("test_resume.py::test_every_file_is_flushed_before_the_rename", DAMAGED),
    ),
    "F24": ("the clock jumps back: checkpoints are ordered by step", (BY_NUMBER,)),
    "F25": (
        "a pickle planted in a run: never opened",
        (
            "test_security.py::test_a_planted_pickle_in_a_run_is_never_opened",
            "test_security.py::test_no_file_runs_what_it_reads",
        ),
    ),
}
