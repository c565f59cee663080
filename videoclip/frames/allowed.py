"""What may be opened and decoded: a video is input that nobody vouched for."""

from typing import NamedTuple

CONTAINERS = "mov,matroska,avi,gif,mpeg,mpegts,mpegvideo,flv,ogg,asf,wav,mp3,flac"
"""FFmpeg's names of what may be opened; no playlists, no network. Sound is opened to be named."""
CODECS = {
    "h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v1",
    "msmpeg4v2", "msmpeg4v3", "h263", "mjpeg", "gif", "wmv1", "wmv2", "wmv3", "vc1", "flv1",
    "theora", "dvvideo", "prores",
}  # fmt: skip
"""What may be decoded. FFmpeg has hundreds of decoders more; one of them ran programs that came in
a file of 50 kB (CVE-2026-8461, MagicYUV)."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Files that are one frame."""


class Limits(NamedTuple):
    """What is still decoded. The defaults leave everything that cameras and film make."""

    side: int = 8192
    """Pixels."""
    pixels: int = 36_000_000
    """Of one frame."""
    seconds: float = 6 * 3600.0
    """Duration of a video."""
    frames: int = 2_000_000
    """Of a video."""
    memory: int = 4 << 30
    """Bytes of address space of the process that decodes."""
    timeout: float = 60.0
    """Seconds for one file."""
    full: bool = False
    """Decode every frame, not only head, middle and tail."""
