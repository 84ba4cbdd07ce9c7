"""What others have measured on GPT-2 small: facts to compare with, each with its source.

PAPER is arXiv 2605.26343v1 and its public code (`causality-RL`): 144 heads, 32 prompts an episode, 50 picks, control
weight 1, zero ablation with folded value biases, control on WikiText-2 spans of 60 tokens.
"""

PAPER = "arXiv 2605.26343v1 and its public code"
MODEL = "gpt2"

# Mean best score of evaluation episodes, nats.
PLATEAU = {"induction": 3.386, "ioi": 3.191}  # the trained agent
RANDOM_50 = {"induction": 2.459, "docstring": 1.395}  # random search, 50 picks, 30 episodes
# Held-out docstring, 50 picks, by the K of best-of-K training; 30 episodes.
DOCSTRING_UNTOLD = {1: 1.467, 5: 2.103}  # no task signal
DOCSTRING_TOLD_INDUCTION = {1: 2.178, 5: 2.229}
STEPS = 200_000  # of training

# Heads by mean score, the best first.
TOP_HEADS = {
    "induction": "1.10 0.9 0.10 5.5 11.0 3.0 0.7 2.3 1.2 2.6".split(),
    "ioi": "0.9 8.6 8.10 5.9 1.3 7.9 11.0 5.5 10.6 2.11".split(),
    "docstring": "0.10 8.10 0.1 2.11 5.9 1.2 5.5 7.11 3.0 7.7".split(),
}

WANG = "Wang et al. 2022, arXiv 2211.00593"
OLSSON = "Olsson et al. 2022, arXiv 2209.11895"
HANNA = "Hanna et al. 2023, arXiv 2305.00586"
MCDOUGALL = "McDougall et al. 2023, arXiv 2310.04625"

# task → role → (heads, source)
ROLES = {
    "ioi": {
        "name mover": ("9.9 10.0 9.6".split(), WANG),
        "backup name mover": ("10.10 10.6 10.2 10.1 11.2 9.7 9.0 11.9".split(), WANG),
        "negative name mover": ("10.7 11.10".split(), WANG),
        "S-inhibition": ("7.3 7.9 8.6 8.10".split(), WANG),
        "induction": ("5.5 5.8 5.9 6.9".split(), WANG),
        "duplicate token": ("0.1 0.10 3.0".split(), WANG),
        "previous token": ("2.2 4.11".split(), WANG),
    },
    "induction": {
        "induction": ("5.1 5.5 6.9 7.2 7.10".split(), f"commonly cited after {OLSSON}"),
        "previous token": ("4.11 2.2".split(), WANG),
    },
    "greater_than": {
        "early attention": ("0.1 0.3 0.5".split(), HANNA),
        "mid attention": ("5.5 6.1 6.9 7.10 8.11 9.1".split(), HANNA),
    },
    "copy_suppression": {"negative": ("10.7 11.10".split(), MCDOUGALL)},
}
