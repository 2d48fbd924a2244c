package hostile

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"podstead/cri"
)

// refusals are the codes with which a senseless request may be refused. Unknown
// is for what only the kernel can find out; Internal would be a crash.
var refusals = []codes.Code{codes.OK, codes.InvalidArgument, codes.NotFound, codes.Unimplemented,
	codes.FailedPrecondition, codes.AlreadyExists, codes.OutOfRange, codes.Unknown}

// method is one call of the CRI.
type method struct {
	path   string
	input  protoreflect.MessageDescriptor
	output protoreflect.MessageDescriptor
}

// methods lists all calls but those that never end.
func methods(t *testing.T) []method {
	t.Helper()
	var list []method
	for _, service := range []protoreflect.FullName{"runtime.v1.RuntimeService", "runtime.v1.ImageService"} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(service)
		if err != nil {
			t.Fatal(err)
		}
		all := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range all.Len() {
			if m := all.Get(i); !m.IsStreamingServer() {
				list = append(list, method{fmt.Sprintf("/%s/%s", service, m.Name()), m.Input(), m.Output()})
			}
		}
	}
	return list
}

// dial connects to the node's socket without our own client's checks.
func (n *node) dial() *grpc.ClientConn {
	n.Helper()
	conn, err := grpc.NewClient(n.service.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(cri.MaxMessageSize), grpc.MaxCallSendMsgSize(4*cri.MaxMessageSize)))
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { conn.Close() })
	return conn
}

// invoke makes a call, which must be answered soon and with a proper code.
func (n *node) invoke(conn *grpc.ClientConn, m method, request proto.Message) error {
	n.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	err := conn.Invoke(ctx, m.path, request, dynamicpb.NewMessage(m.output))
	for _, code := range refusals {
		if status.Code(err) == code {
			return err
		}
	}
	n.Errorf("%s %.2000v: %v", m.path, request, err)
	return err
}

// target is what requests may be about.
type target struct{ pod, container string }

func TestSenselessRequests(t *testing.T) {
	n := start(t)
	conn := n.dial()
	p := n.pod()
	of := target{p.id, p.start(sh("sleep 1000"))}
	for _, m := range methods(t) {
		empty := dynamicpb.NewMessage(m.input)
		err := n.invoke(conn, m, empty)
		needs := m.input.Fields().ByName("pod_sandbox_id") != nil || m.input.Fields().ByName("container_id") != nil || m.input.Fields().ByName("config") != nil
		if needs && status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.Unimplemented && !strings.Contains(m.path, "PodSandboxStats") {
			t.Errorf("%s without anything: %v", m.path, err)
		}
		for _, id := range []string{"../../../etc", "..", "/", "\x00", "\n", strings.Repeat("a", 1<<20), of.pod[:1] + "*", "\u202e"} {
			request := dynamicpb.NewMessage(m.input)
			for _, field := range []protoreflect.Name{"pod_sandbox_id", "container_id"} {
				if f := m.input.Fields().ByName(field); f != nil {
					request.Set(f, protoreflect.ValueOfString(id))
				}
			}
			if err := n.invoke(conn, m, request); err != nil && len(err.Error()) > 2000 {
				t.Errorf("%s: the error has %d bytes: %.200v…", m.path, len(err.Error()), err)
			}
		}
	}
	if state := p.status(of.container).GetState(); state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", state)
	}
	p.remove()
}

// TestFuzzedRequests sends messages with random content, about a real pod and
// container as often as not.
func TestFuzzedRequests(t *testing.T) {
	n := start(t)
	conn := n.dial()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	f := fuzzer{Rand: rand.New(rand.NewPCG(seed, 0))}
	all := methods(t)
	for round := range 6 {
		p := n.pod()
		f.target = target{p.id, p.start(sh("sleep 1000"))}
		f.parent = n.cgroup() + "/fuzz"
		for range 100 {
			m := all[f.IntN(len(all))]
			request := dynamicpb.NewMessage(m.input)
			f.fill(request, 0)
			if strings.HasSuffix(m.path, "/PullImage") || strings.HasSuffix(m.path, "/RemoveImage") {
				continue // they would go out to the network, and take the others' image
			}
			n.invoke(conn, m, request)
			if n.Failed() {
				t.Fatalf("in round %d", round)
			}
		}
		n.removeAll()
	}
}

// removeAll removes all pods that the runtime has.
func (n *node) removeAll() {
	n.Helper()
	list, err := n.rt.ListPodSandbox(n.ctx(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.Fatal(err)
	}
	for _, s := range list.GetItems() {
		if _, err := n.rt.RemovePodSandbox(n.ctx(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.GetId()}); err != nil {
			n.Error(err)
		}
	}
}

// fuzzer fills messages.
type fuzzer struct {
	*rand.Rand
	target target
	parent string
}

func (f *fuzzer) fill(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if f.IntN(3) == 0 || depth > 5 {
			continue
		}
		switch {
		case field.Name() == "windows" && f.IntN(20) > 0:
		case field.IsMap():
			for range f.IntN(3) {
				key := f.scalar(field.MapKey()).MapKey()
				if field.MapValue().Message() == nil {
					m.Mutable(field).Map().Set(key, f.scalar(field.MapValue()))
				}
			}
		case field.IsList():
			list := m.Mutable(field).List()
			for range f.IntN(3) {
				if field.Message() != nil {
					f.fill(list.AppendMutable().Message(), depth+1)
				} else {
					list.Append(f.scalar(field))
				}
			}
		case field.Message() != nil:
			f.fill(m.Mutable(field).Message(), depth+1)
		default:
			m.Set(field, f.scalar(field))
		}
	}
}

// words are strings that have done harm somewhere.
var words = []string{"", "a", "..", "../../x", "/", "/proc/self/fd/3", "/dev/null", "/tmp", "\n", "-1", "99999999999999999999",
	"localhost/busybox:latest", "sh", "true", "kernel.shm_rmid_forced", "0", "a=b", "100m", "é\u0000", "unconfined", "RuntimeDefault", "runc", "1.2.3.4", "::1"}

func (f *fuzzer) word(field protoreflect.FieldDescriptor) string {
	switch {
	case strings.HasSuffix(string(field.Name()), "pod_sandbox_id") && f.IntN(4) > 0:
		return f.target.pod
	case strings.HasSuffix(string(field.Name()), "container_id") && f.IntN(4) > 0:
		return f.target.container
	case field.Name() == "image" && f.IntN(4) > 0:
		return busybox
	case field.Name() == "cgroup_parent":
		// Pods elsewhere would be a caller's wish that the test cannot clean up.
		return f.parent
	case field.Name() == "log_directory", field.Name() == "host_path", field.Name() == "log_path", field.Name() == "netns_path":
		return []string{"", "..", "relative", "/proc/self/x", "/dev/null"}[f.IntN(5)]
	case f.IntN(50) == 0:
		return strings.Repeat(words[f.IntN(len(words))], 10000)
	}
	return words[f.IntN(len(words))]
}

func (f *fuzzer) scalar(field protoreflect.FieldDescriptor) protoreflect.Value {
	numbers := []int64{0, 1, -1, 2, 80, 1000, 65536, math.MaxInt32, math.MinInt32}
	number := numbers[f.IntN(len(numbers))]
	switch field.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(f.IntN(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(f.IntN(4)))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind:
		return protoreflect.ValueOfInt32(int32(number))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(number))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind:
		if field.Name() == "timeout" {
			return protoreflect.ValueOfInt64(int64(f.IntN(2)))
		}
		return protoreflect.ValueOfInt64([]int64{number, math.MaxInt64, math.MinInt64}[f.IntN(3)])
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(number))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(f.word(field)))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(math.NaN())
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(number))
	default:
		return protoreflect.ValueOfString(strings.ToValidUTF8(f.word(field), ""))
	}
}
