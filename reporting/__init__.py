"""What a run leaves in its directory, and the page that shows it.

metrics.py        what is logged about a step's completions
run_log.py        config.json, run.json, metrics.jsonl, completions.jsonl, the progress bar
provenance.py     the content of run.json: command, commit, versions, fingerprints of the data
gallery.py        gallery.jsonl and images/: completions with their pictures
attention_map.py  where an answer looked
trackers.py       the same metrics for TensorBoard, wandb or trackio
verdict.py        what the curves mean: one sentence and traffic lights
page/             report.html: saved_run, curves, rollouts, render, and the template page.html
"""
