"""Training runs: starts, resumes and plans a run from a request, and loads checkpoints and their models."""

from mlx_gpt.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Request": "request",
        "Start": "build",
        "begin": "start",
        "best_checkpoint": "folder",
        "newest_checkpoint": "folder",
        "is_run": "folder",
        "folder_of": "folder",
        "Session": "session",
        "plan": "planning",
        "Run": "loading",
        "load": "loading",
        "load_with_tokenizer": "loading",
        "read_checkpoint": "loading",
        "checkpoint_in": "loading",
        "format_of": "loading",
        "with_text": "loading",
        "require_context": "loading",
        "to_run": "loading",
        "tuned": "tuned",
    },
)
