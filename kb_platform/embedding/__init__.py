"""Texts become vectors.

Belongs here: which model (`model`), its files (`folder`), its tokens (`tokens`), the engines that compute it on
this machine (`numpy_engine`, `torch_engine`) and the servers that compute it elsewhere (`remote`), behind one
`Embedder` (`embedder`). Does not belong here: where vectors are kept (`store`), and what is embedded (`text`).

Nothing here imports torch or transformers until a large batch is embedded.
"""
