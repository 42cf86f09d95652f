"""
The subcommands of `lt-detectron2`.

A subcommand is one module of this package with a docstring that explains it, and

    add_arguments(parser)       its arguments, without importing anything heavy
    run(arguments) -> int       the work; 0 where it went well

and an entry in COMMANDS. It is imported only when somebody asks for it, so that `doctor` runs where
Detectron2 does not load. From a checkout that nobody installed, `python tools/<command>.py` and
`python -m lt_detectron2 <command>` are the same.
"""

COMMANDS = {
    "example-data": "make a small imbalanced data set in COCO format, to try things out",
    "stats": "show what annotations hold: classes, imbalance, repeat factors, doubtful entries",
    "recommend": "propose a method, with reasons and measured evidence, and write its config",
    "demo": "detect in images, folders or videos with a checkpoint: pictures and one JSON file",
    "export": "write TorchScript, ONNX or plain Detectron2 files, compared with the original",
    "report": "write report.md and report.html of a training or evaluation anew",
    "compare": "two runs: metrics and every class, with intervals and figures",
    "make-lt": "cut a long tail out of any COCO annotation file",
    "replay": "run a step again whose loss became infinite or no number",
    "doctor": "say whether everything needed works here, with a remedy for what does not",
}
"""What each subcommand does, by name; `a-b` is the module `a_b`."""
