"""The page of a run: a Gradio Space, which `smd-hf show` also opens locally."""
