"""Checkpoints in an object store.

Each process writes the chunks that its devices hold to a local folder, hashes and uploads them. The
union of the files of all processes is a checkpoint (zarr3 arrays), so nothing has to be merged.
Process 0 then writes the manifest, checkpoints/STEP/manifest.json, with a precondition: a step
exists once its manifest does. Files lie under a name of their own (STEP/TOKEN/...), so a step that
is saved again changes with one write.

To restore, each process downloads the chunks that its devices need, unless its local folder still
has them, and verifies their hashes.

Orbax merges the files of all processes in process 0, which needs a folder that all of them see. Its
own writing to gs:// and s3:// would hash by reading everything again.
"""
