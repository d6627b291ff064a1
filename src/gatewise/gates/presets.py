"""Names of networks with gates, which `gatewise.integrations.timm` registers in timm."""

TAG = "gatewise"
PRESETS = {
    "gct_resnet18": "resnet18+gct",
    "gct_resnet50": "resnet50+gct",
    "gc_resnet50": "resnet50+gc",
    "se_resnet50": "resnet50+se",
    "gct_resnet20": "resnet20+gct",
    "gater_resnet56": "resnet56+gaternet:sites=residual,gater=resnet20",
}
