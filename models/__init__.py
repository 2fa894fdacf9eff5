"""The published FCN nets as short Python definitions, and the files written from them.

`fcn` has the architectures as functions (any number of classes, any widths), `sources` what feeds them, `catalog` the
15 published combinations with their solvers and facts; `python -m models.write` writes the folders beside this file. An
installed package has all this as `fcnproto._models`; `fcnproto.zoo` finds it in either place.
"""
