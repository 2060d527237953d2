"""Films, frame by frame through the pipeline of pictures. Needs the extra `video`."""

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
# What --codec takes: the encoder, and the containers that hold it.
CODECS = {
    "h264": ("libx264", (".mp4", ".m4v", ".mov", ".mkv")),
    "hevc": ("libx265", (".mp4", ".m4v", ".mov", ".mkv")),
    "av1": ("libsvtav1", (".mp4", ".mkv", ".webm")),
    "ffv1": ("ffv1", (".mkv",)),
}
