"""The settings of published methods as named presets: ``python train.py --recipe dapo``.

A recipe sets what defines the method: advantages, importance ratio, loss, clipping, KL, sampling,
updates per batch, and whether the tokens of zero-variance groups count in the loss's mean, as in
published methods. Learning rates, batch sizes and rewards depend on the model and the task and keep
their defaults, except that DAPO's length penalty is part of the method. A batch here has 16
questions, those of DAPO and MiniMax-M1 have hundreds: they make 16 updates of one, here it is 4.
Each moves the weights about as far as one of a whole batch, so that a lower --lr may be better.
"""

RECIPES = {
    # DeepSeekMath (arXiv 2402.03300, sections 4.1 and 4.2): KL weight 0.04, one iteration.
    "grpo": {
        "advantage": "group",
        "loss_aggregation": "sequence",
        "importance_sampling": "token",
        "kl": "k3",
        "beta": 0.04,
        "zero_variance": "train",
    },
    # DAPO (arXiv 2503.14476, sections 3.1-3.4 and 4.1): clip-higher, dynamic sampling, a mean over
    # tokens, a soft penalty for length, no KL. The paper scales right and wrong to +1 and -1, twice
    # as far apart as here, so its penalty of at most 1 is 0.5 here. It replaces groups that are all
    # right or all wrong; dynamic sampling here replaces those whose rewards are all equal. Right
    # answers that the encoder scores differently stay, and so do wrong ones of which some run, and
    # `group` gives them advantages as large as any. `--reward semantic=0 --reward schema=0 --reward
    # syntax=0` leaves no difference but that of lengths.
    "dapo": {
        "advantage": "group",
        "loss_aggregation": "token",
        "importance_sampling": "token",
        "beta": 0.0,
        "epsilon_high": 0.28,
        "dynamic_sampling": 4,
        "minibatches": 4,
        "reward": {"overlong": 0.5},
    },
    # Dr. GRPO (arXiv 2503.20783, section 3.2): neither the std nor a length is divided by; no KL.
    "dr_grpo": {
        "advantage": "centered",
        "loss_aggregation": "constant",
        "importance_sampling": "token",
        "beta": 0.0,
        "zero_variance": "train",
    },
    # GSPO (arXiv 2507.18071, eq. 5-7 and section 5.1): tiny clip range, since the ratio is a mean
    # over the sequence; a batch is split into four minibatches.
    "gspo": {
        "advantage": "group",
        "loss_aggregation": "sequence",
        "importance_sampling": "sequence",
        "beta": 0.0,
        "zero_variance": "train",
        "epsilon_low": 3e-4,
        "epsilon_high": 4e-4,
        "minibatches": 4,
    },
    # CISPO (MiniMax-M1, arXiv 2506.13585, section 3.1): capped importance weights, no KL, and the
    # mean over tokens, dynamic sampling and length penalty of DAPO. The paper does not give its
    # cap; 1 + 4 is in common use.
    "cispo": {
        "advantage": "group",
        "loss_aggregation": "token",
        "importance_sampling": "cispo",
        "beta": 0.0,
        "epsilon_high": 4.0,
        "dynamic_sampling": 4,
        "minibatches": 4,
        "reward": {"overlong": 0.5},
    },
    # Adaptation to a database without gold SQL: the answers that a group agrees on are taken for
    # right (TTRL, arXiv 2504.16084), and the encoder scores what they mean.
    "label_free": {
        "reward": {"execution": 0.0, "schema": 0.0, "consensus": 1.0, "semantic": 0.5},
    },
    # The paper that this project is about (arXiv 2510.13827): GRPO as published, KL weight 0.02.
    # It leaves group size, LoRA rank and reward weights open.
    "paper": {
        "advantage": "group",
        "loss_aggregation": "sequence",
        "importance_sampling": "token",
        "kl": "k3",
        "beta": 0.02,
        "zero_variance": "train",
    },
}
