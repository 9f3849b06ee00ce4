"""
Code that is copied beside every saved ensemble, and runs as remote code where smd_hf is not installed.

These files import one another, torch and public names of transformers, and nothing of smd_hf. Whatever else of
transformers they use is asked for where it is needed, and may be missing. Published copies of them cannot be mended.
"""
