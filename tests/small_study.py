"""A study of interventions in seconds."""

PNG = b"\x89PNG"
SMALL = (
    "calibration.prompts=2",
    "calibration.tokens=4",
    "calibration.candidates=2",
    "calibration.max_passes=3",
    "calibration.audit_prompts=2",
    "evaluation.prompts=3",
    "evaluation.tokens=6",
    "evaluation.questions=2",
    "evaluation.neutral_texts=2",
    "evaluation.vignette_count=7",
    "evaluation.resamples=100",
    "evaluation.min_p_ans_any=0",
    "compute.threads=1",
    "steer.pairs=4",
)
