"""Where a model fails: pure functions from predictions to the parts of `finetune.record.analysis`."""
