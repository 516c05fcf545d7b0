"""A face parser with random weights, in the released folder's files."""

import json

import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The keys of the released folder's file, written by an older transformers.
PROCESSOR = {
    "do_normalize": True, "do_reduce_labels": False, "do_rescale": True, "do_resize": True, "image_mean": MEAN, "image_std": STD,
    "image_processor_type": "SegformerFeatureExtractor", "resample": 2, "rescale_factor": 1 / 255, "size": {"height": 512, "width": 512},
}  # fmt: skip


def write_segformer(folder, num_labels=19):
    torch.manual_seed(0)
    sizes = {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}
    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=num_labels, **sizes)).eval()
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(50)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model
