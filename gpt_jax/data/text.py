"""Text that may hold broken UTF-8: bytes that don't decode stand in a str as surrogate escapes."""


def to_bytes(text: str | bytes) -> bytes:
  """UTF-8; surrogate escapes become the bytes they stand for, and a lone surrogate (legal in JSON) its three bytes."""
  if isinstance(text, bytes):
    return text
  try:
    return text.encode('utf-8', 'surrogateescape')
  except UnicodeEncodeError:
    return text.encode('utf-8', 'surrogatepass')


def to_text(text: str | bytes) -> str:
  """The str of which `to_bytes` gives the same bytes; only surrogate escapes are left of all surrogates."""
  return to_bytes(text).decode('utf-8', 'surrogateescape')
