"""What a run leaves behind, and the page that shows it.

runlog.py    config.json, run.json, metrics.jsonl, completions.jsonl, the progress bar
gallery.py   gallery.jsonl and images/: completions with their pictures, for the page
heatmap.py   where an answer looked
trackers.py  the same metrics for TensorBoard, wandb or trackio
saved.py     a run's directory, read back
verdict.py   what the curves mean: one sentence and traffic lights
curves.py    the geometry of the curves
rollouts.py  which completions the page shows, and how
page.html    the page, a Jinja template; report.py fills it in
"""
