from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Change(_message.Message):
    __slots__ = ["kind", "tunnel"]
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = []
    ADDED: Change.Kind
    CHANGED: Change.Kind
    CURRENT: Change.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    REMOVED: Change.Kind
    TUNNEL_FIELD_NUMBER: _ClassVar[int]
    kind: Change.Kind
    tunnel: Tunnel
    def __init__(self, kind: _Optional[_Union[Change.Kind, str]] = ..., tunnel: _Optional[_Union[Tunnel, _Mapping]] = ...) -> None: ...

class ExtendRequest(_message.Message):
    __slots__ = ["lifetime", "name"]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    lifetime: int
    name: str
    def __init__(self, name: _Optional[str] = ..., lifetime: _Optional[int] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ["name"]
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ["everyone"]
    EVERYONE_FIELD_NUMBER: _ClassVar[int]
    everyone: bool
    def __init__(self, everyone: bool = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ["tunnels"]
    TUNNELS_FIELD_NUMBER: _ClassVar[int]
    tunnels: _containers.RepeatedCompositeFieldContainer[Tunnel]
    def __init__(self, tunnels: _Optional[_Iterable[_Union[Tunnel, _Mapping]]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ["drain", "name"]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    drain: int
    name: str
    def __init__(self, name: _Optional[str] = ..., drain: _Optional[int] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = []
    def __init__(self) -> None: ...

class Tunnel(_message.Message):
    __slots__ = ["created_usec", "expires_usec", "id", "label", "listeners", "owner", "rate", "result", "role", "security", "state", "targets", "type", "warnings"]
    CREATED_USEC_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_USEC_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    LISTENERS_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SECURITY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    created_usec: int
    expires_usec: int
    id: str
    label: str
    listeners: _containers.RepeatedScalarFieldContainer[str]
    owner: str
    rate: int
    result: str
    role: str
    security: str
    state: str
    targets: _containers.RepeatedScalarFieldContainer[str]
    type: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., label: _Optional[str] = ..., role: _Optional[str] = ..., state: _Optional[str] = ..., type: _Optional[str] = ..., security: _Optional[str] = ..., listeners: _Optional[_Iterable[str]] = ..., targets: _Optional[_Iterable[str]] = ..., rate: _Optional[int] = ..., created_usec: _Optional[int] = ..., expires_usec: _Optional[int] = ..., owner: _Optional[str] = ..., result: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ["everyone"]
    EVERYONE_FIELD_NUMBER: _ClassVar[int]
    everyone: bool
    def __init__(self, everyone: bool = ...) -> None: ...
