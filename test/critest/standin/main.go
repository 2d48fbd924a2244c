// Command standin stands in for the programs in the images that critest pulls:
// two web servers, a setuid program, the pause process and a shell. Its name
// tells which of them it is. Where critest looks at a program's name, its pid
// file or its output, it finds what it looks for.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// master is what nginx calls its first process.
const master = "nginx: master process"

func main() {
	if err := run(filepath.Base(os.Args[0]), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(name string, args []string) error {
	switch name {
	case "nginx": // PORT
		return syscall.Exec("/proc/self/exe", append([]string{master}, args...), os.Environ())
	case master:
		if err := os.WriteFile("/var/run/nginx.pid", []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
			return err
		}
		return serve(args[0])
	case "httpd": // PORT
		return serve(args[0])
	case "nonewprivs":
		_, err := fmt.Printf("Effective uid: %d\n", os.Geteuid())
		return err
	case "sh":
		return shell(args)
	case "pause":
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
		<-end
		return nil
	}
	return fmt.Errorf("%s: not known", name)
}

// shell is busybox's, but for commands of one word, which it executes as files.
// Debian's busybox runs those itself, even when the file is masked.
func shell(args []string) error {
	if len(args) == 2 && args[0] == "-c" && strings.Trim(args[1], "abcdefghijklmnopqrstuvwxyz") == "" {
		for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
			err := syscall.Exec(filepath.Join(dir, args[1]), args[1:], os.Environ())
			if errors.Is(err, fs.ErrPermission) {
				return fmt.Errorf("%s: %s: Permission denied", os.Args[0], args[1])
			}
		}
	}
	return syscall.Exec("/bin/busybox", append([]string{"sh"}, args...), os.Environ())
}

// serve is a web site of one page.
func serve(port string) error {
	fmt.Printf("%s: serving port %s\n", os.Args[0], port)
	return http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "welcome")
	}))
}
