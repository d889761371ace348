"""Measures what a block of Llama keeps for its backward pass in Transformers, with adapters by PEFT and without.

    pip install torch transformers peft
    python scripts/kept_by_peft.py

Prints the bytes of saved tensors for each block and token, in rows of the residual stream (2 bytes x hidden size). The
test `blocks_keep_what_transformers_and_peft_keep` (analytic/tests/it/lora.rs) compares predictions with these.
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

HIDDEN, FFN, HEADS, TOKENS, VOCAB = 512, 1376, 8, 1024, 1000
TARGETS = {
    "whole model": None,
    "q": ["q_proj"],
    "q, v": ["q_proj", "v_proj"],
    "q, gate": ["q_proj", "gate_proj"],
    "q, down": ["q_proj", "down_proj"],
    "all-linear": "all-linear",
}


def model(layers, targets, wide_adapters):
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        num_hidden_layers=layers,
        vocab_size=VOCAB,
        max_position_embeddings=TOKENS,
        attn_implementation="sdpa",
        use_cache=False,
    )
    whole = LlamaForCausalLM(config).to(torch.bfloat16)
    if targets is None:
        return whole
    lora = LoraConfig(r=8, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM")
    return get_peft_model(whole, lora, autocast_adapter_dtype=wide_adapters)


def saved_bytes(layers, targets, autocast):
    trained = model(layers, targets, autocast)
    weights = {weight.untyped_storage().data_ptr() for weight in trained.parameters()}
    sizes, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    tokens = torch.randint(0, VOCAB, (1, TOKENS))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            trained(input_ids=tokens, labels=tokens)
    return sum(sizes.values())


for autocast in [False, True]:
    print("adapters in fp32, autocast" if autocast else "adapters in bf16")
    for name, targets in TARGETS.items():
        two_blocks = saved_bytes(4, targets, autocast) - saved_bytes(2, targets, autocast)
        print(f"  {name}: {two_blocks / 2 / TOKENS / (2 * HIDDEN):.2f} rows")
