package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// maxFile is the size above which a file is refused.
const maxFile = 1 << 20

// Read reads a file. Its errors name the file and, if it has one, the field.
func Read(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return Config{}, err
	}
	c, err := Parse(data)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Parse reads a file's content: YAML or JSON, in which nothing may be that is not
// known. What it does not mention is as in Default.
func Parse(data []byte) (Config, error) {
	if len(data) > maxFile {
		return Config{}, fmt.Errorf("more than %d bytes", maxFile)
	}
	// The library reads the first document only.
	if n := documents(data); n > 1 {
		return Config{}, fmt.Errorf("%d YAML documents, want one", n)
	}
	jsonData, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return Config{}, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	c := Default()
	strictErrs, err := kjson.UnmarshalStrict(jsonData, &c)
	if err := errors.Join(append(strictErrs, err)...); err != nil {
		return Config{}, err
	}
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// documents counts those with a line of content.
func documents(data []byte) (n int) {
	content := false
	for line := range strings.Lines(string(data)) {
		switch line = strings.TrimRight(line, " \t\r\n"); {
		case line == "---" || line == "...":
			content = false
		case line == "" || strings.HasPrefix(strings.TrimLeft(line, " \t"), "#"):
		case !content:
			content = true
			n++
		}
	}
	return n
}
