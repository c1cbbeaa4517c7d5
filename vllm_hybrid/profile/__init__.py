"""`vllm-hybrid profile`: measure an engine's steps, fit the predictor, search the settings that keep an SLO."""
