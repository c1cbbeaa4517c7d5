"""The demo: one load, two schedulers, one table.

`python -m benchmarks.demo` starts the real `vllm serve` twice, first with stock vLLM's scheduler and then with
`--scheduler hybrid`, replays the same requests against both through the `openai` client, and prints what each
tenant got.  `docs/demo.md` explains the load and how to read the result.
"""
