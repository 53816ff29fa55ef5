"""Networks, one family a file; each constructor bears the network's name, forward gives `Output`.

There is no registry: a file in conf/student or conf/teacher names the constructor. Every class
(for foreign networks every instance) has `TAPS`, the names that forward returns, in order:

    stem           after the first convolution (and its BN and ReLU where it has them)
    stage1 ...     the end of each stage, what published recipes call f1, f2, ...
    stage1_pre ... the same before its activation; each family's docstring says what exactly
    pooled         [B, D], the input of the classifier

State-dict keys are those of the checkpoints that RepDistiller and mdistiller released.
"""
