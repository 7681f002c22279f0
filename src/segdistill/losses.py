"""Every pure loss function, for people with their own training loop."""

from segdistill.methods._critic import gradient_penalty
from segdistill.methods.at import attention_transfer
from segdistill.methods.cirkd import cross_image_similarity
from segdistill.methods.cwd import channel_kl
from segdistill.methods.dist import inter_class_relation, intra_class_relation
from segdistill.methods.fakd import augmented_channel_kl, augmented_pixel_kl
from segdistill.methods.i2ckd import class_prototypes, prototype_triplet
from segdistill.methods.ifvd import intra_class_variation
from segdistill.methods.jml import soft_jaccard
from segdistill.methods.kd import pixel_kl
from segdistill.methods.local import local_similarity
from segdistill.methods.mimic import feature_mse
from segdistill.methods.skd import pairwise_similarity
from segdistill.methods.sstkd import statistical_texture, structural_texture

__all__ = [
    "attention_transfer",
    "augmented_channel_kl",
    "augmented_pixel_kl",
    "channel_kl",
    "class_prototypes",
    "cross_image_similarity",
    "feature_mse",
    "gradient_penalty",
    "inter_class_relation",
    "intra_class_relation",
    "intra_class_variation",
    "local_similarity",
    "pairwise_similarity",
    "pixel_kl",
    "prototype_triplet",
    "soft_jaccard",
    "statistical_texture",
    "structural_texture",
]
