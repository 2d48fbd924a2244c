package ctl

import (
	"encoding/json"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"
)

// outputFlag is the choice of "-o".
type outputFlag string

const (
	asTable outputFlag = "table"
	asJSON  outputFlag = "json"
	asYAML  outputFlag = "yaml"
)

func (o *outputFlag) String() string { return string(*o) }
func (o *outputFlag) Type() string   { return "FORMAT" }

// Set implements the flag.
func (o *outputFlag) Set(s string) error {
	switch f := outputFlag(s); f {
	case asTable, asJSON, asYAML:
		*o = f
		return nil
	}
	return fmt.Errorf("%q is none of table, json and yaml", s)
}

// printMessage prints a message of the CRI, with the names of its JSON form. The
// values of its field "info", if it has one, are JSON in strings, and are shown
// as what they are.
func printMessage(out io.Writer, m proto.Message, format outputFlag) error {
	encoded, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return err
	}
	var object map[string]any
	if err := json.Unmarshal(encoded, &object); err != nil {
		return err
	}
	if image, ok := object["image"]; ok && object["status"] == nil {
		object["status"] = image // as crictl calls the image of an ImageStatusResponse
		delete(object, "image")
	}
	if info, ok := object["info"].(map[string]any); ok {
		for key, value := range info {
			var inner any
			if s, ok := value.(string); ok && json.Unmarshal([]byte(s), &inner) == nil {
				info[key] = inner
			}
		}
	}
	if format == asYAML {
		encoded, err = yaml.Marshal(object)
	} else {
		encoded, err = json.MarshalIndent(object, "", "  ")
		encoded = append(encoded, '\n')
	}
	if err != nil {
		return err
	}
	_, err = out.Write(encoded)
	return err
}
