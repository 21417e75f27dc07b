from tests.postgresql import postgresql_server
from tests.s3 import s3_server

__all__ = ["postgresql_server", "s3_server"]
