"""Data: reads text, turns it into token ids, and cuts the ids into training windows."""

from mlx_gpt.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "corpus_name": "corpus",
        "list_corpora": "corpus",
        "open_corpus": "corpus",
        "make_tokenizer": "encoding",
        "encode": "encoding",
        "import_ids": "encoding",
        "open_vocab": "vocabularies",
        "tokenizer_json": "bpe",
        "name_unknown": "tokenizer",
        "stats": "stats",
    },
)
