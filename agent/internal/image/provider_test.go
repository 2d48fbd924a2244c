package image

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// provider writes a plugin, and a configuration that names it.
func provider(t *testing.T, script, settings string) (config, bin string) {
	t.Helper()
	bin = t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "plugin"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	config = filepath.Join(bin, "config.yaml")
	if settings == "" {
		settings = `
  - name: plugin
    matchImages: ["*.example.com"]
    defaultCacheDuration: 1h
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: [get]
    env: [{name: DIR, value: ` + bin + `}]
`
	}
	text := "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1\nproviders:" + settings
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return config, bin
}

// answering is a plugin that notes its calls and answers so.
func answering(fields string) string {
	return `echo "$1 $(cat)" >>$DIR/calls; echo '{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", ` + fields + `}'`
}

func TestProvider(t *testing.T) {
	auth := `"auth": {"*.example.com": {"username": "all", "password": "p"}, "a.example.com/team": {"username": "team"}}`
	for _, c := range []struct {
		name, answer string
		images       []string
		users        []string // for each image
		calls        int
	}{
		{"kept by image", `"cacheKeyType": "Image", ` + auth, []string{"a.example.com/x:1", "a.example.com/x:2", "a.example.com/y"},
			[]string{"all", "all", "all"}, 2},
		{"kept by registry", `"cacheKeyType": "Registry", ` + auth, []string{"a.example.com/x", "a.example.com/team/y", "b.example.com/x"},
			[]string{"all", "team all", "all"}, 2},
		{"kept for all", `"cacheKeyType": "Global", ` + auth, []string{"a.example.com/x", "b.example.com/x"}, []string{"all", "all"}, 1},
		{"not kept", `"cacheDuration": "0s", "cacheKeyType": "Global", ` + auth, []string{"a.example.com/x", "a.example.com/x"}, []string{"all", "all"}, 2},
		{"not for it", `"cacheKeyType": "Global", ` + auth, []string{"elsewhere.io/x"}, []string{""}, 0},
		{"nothing known", `"cacheKeyType": "Image"`, []string{"a.example.com/x"}, []string{""}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, bin := provider(t, answering(c.answer), "")
			providers, err := ReadProviders(config, bin)
			if err != nil {
				t.Fatal(err)
			}
			p := New(Config{Providers: providers})
			for i, image := range c.images {
				var users []string
				for _, k := range p.credentials(t.Context(), image, nil) {
					users = append(users, k.Auth.Username)
				}
				if got := strings.Join(users, " "); got != c.users[i] {
					t.Errorf("%s: %q, want %q", image, got, c.users[i])
				}
			}
			calls, _ := os.ReadFile(filepath.Join(bin, "calls"))
			if got := strings.Count(string(calls), "\n"); got != c.calls {
				t.Errorf("%d calls, want %d: %s", got, c.calls, calls)
			}
			if want := `get {"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"` + strings.TrimSuffix(c.images[0], ":1") + `"}`; c.calls > 0 && !strings.HasPrefix(string(calls), want) {
				t.Errorf("called with %s, want %s", calls, want)
			}
		})
	}
}

func TestProviderIsAskedOnce(t *testing.T) {
	config, bin := provider(t, "mkfifo $DIR/wait 2>/dev/null; cat $DIR/wait >/dev/null; "+answering(`"cacheDuration": "0s", "cacheKeyType": "Image"`), "")
	providers, err := ReadProviders(config, bin)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := providers[0].lookup(t.Context(), named(t, "a.example.com/x")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Go(func() {
		for t.Context().Err() == nil { // until the plugin has made it
			if f, err := os.OpenFile(filepath.Join(bin, "wait"), os.O_WRONLY, 0); err == nil {
				f.Close()
				return
			}
		}
	})
	wg.Wait()
	// Who came late may have made the second call.
	if calls, _ := os.ReadFile(filepath.Join(bin, "calls")); strings.Count(string(calls), "\n") > 2 {
		t.Errorf("calls: %s", calls)
	}
}

func TestBadAnswers(t *testing.T) {
	for script, want := range map[string]string{
		"echo no permission >&2; exit 3":         "exit status 3: no permission",
		"echo hello":                             "its answer: invalid character",
		"echo '{}'":                              `its answer is "" of ""`,
		answering(`"cacheKeyType": "Sometimes"`): `cacheKeyType: "Sometimes" is not`,
		"head -c 2000000 /dev/zero":              "longer than",
	} {
		config, bin := provider(t, script, "")
		providers, err := ReadProviders(config, bin)
		if err != nil {
			t.Fatal(err)
		}
		_, err = providers[0].lookup(t.Context(), named(t, "a.example.com/x"))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), bin) {
			t.Errorf("%s: %v, want %q", script, err, want)
		}
	}
}

func TestBadProviders(t *testing.T) {
	const good = `matchImages: [x], defaultCacheDuration: 1m, apiVersion: credentialprovider.kubelet.k8s.io/v1`
	for settings, want := range map[string]string{
		" []":                                "providers: there is none",
		" [{name: ../plugin, " + good + "}]": "providers[0].name: ",
		" [{name: plugin, " + good + "}, {name: none, " + good + "}]":   "providers[1].name: ",
		" [{name: plugin, " + good + "}, {name: plugin, " + good + "}]": `providers: "plugin" is there twice`,
		" [{name: plugin}]":                     "providers[0].matchImages: there is none",
		" [{name: plugin, matchImages: ['[']}]": "providers[0].defaultCacheDuration: ",
		" [{name: plugin, matchImages: ['['], defaultCacheDuration: 1m, apiVersion: credentialprovider.kubelet.k8s.io/v1}]": "providers[0].matchImages[0]: ",
		" [{name: plugin, matchImages: [x], defaultCacheDuration: -1m}]":                                                    "providers[0].defaultCacheDuration: -1m0s",
		" [{name: plugin, matchImages: [x], defaultCacheDuration: 1m}]":                                                     "providers[0].apiVersion: ",
		" [{name: plugin, surprise: 1, " + good + "}]":                                                                      `unknown field "providers[0].surprise"`,
		" [{name: plugin, tokenAttributes: {cacheType: Token}, " + good + "}]":                                              "providers[0].tokenAttributes: ",
	} {
		config, bin := provider(t, "", settings)
		if _, err := ReadProviders(config, bin); err == nil || !strings.HasPrefix(err.Error(), config+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", settings, err, want)
		}
	}
	if _, err := ReadProviders(t.TempDir(), "/"); err == nil {
		t.Error("an empty directory is no error")
	}
}
