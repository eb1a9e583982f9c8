"""Object stores: gs://BUCKET/..., s3://BUCKET/..., and flat://FOLDER, which stands for them.

`store.open_store(url)` gives whole objects, ranges, lists, and writes with a precondition. Nothing
is renamed: what is complete has a marker object, which is written last.

The clients are the vendors' own, google-cloud-storage and boto3 (the extras `gcs` and `s3`). They
read the vendors' environment variables and credentials, and speak the protocol that every emulator
has. obstore, one fast library for both, writes to Google's XML interface: gcp-storage-emulator
answers 501, and STORAGE_EMULATOR_HOST has no effect on it. fsspec and etils.epath have no writes
with a precondition in their common interface. TensorStore, which Orbax brings, reads and writes
only whole values from memory. Training on a disk imports none of them.
"""
