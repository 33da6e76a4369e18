"""The published model's configs, enough to build it at full size, and the parameter counts of its checkpoint."""

UNET: dict = {}  # the defaults of the UNet's config
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18125,
    "force_upcast": True,
}
TEXT = {
    "model_type": "clip_text_model",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "hidden_act": "gelu",
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "hidden_act": "gelu",
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 1024,
}
PARAMETERS = {
    "unet": 1_420_469_224,
    "image_encoder": 632_076_800,
    "text_encoder": 352_984_064,
    "vae": 83_653_863,
}
